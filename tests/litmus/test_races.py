"""A load and a read: without a wait wrong bytes and a conviction from what was recorded, with it neither."""

import pytest

from detectors.base import DetectorVerdict
from detectors.pages.ordering import OrderingDetector
from repro.base.probe import Access, PageSet
from repro.serve.device.base import Body, Commit, Recorder
from tests.litmus.platform import PlatformFactory, copy

PAGES = PageSet(1, (0, 1))


def touching(body: Body, *, write: bool) -> Body:
    """Return an operation that also says that it reads or writes the page."""

    def told(recorder: Recorder) -> Commit | None:
        recorder.access(Access(write, "device", "latent", 0, PAGES.id, "r1"))
        return body(recorder)

    return told


def read_after_load(
    device_factory: PlatformFactory, *, load_us: float, guarded: bool
) -> tuple[list[int], DetectorVerdict]:
    """Load a page (1 becomes 2) and read it on another stream; return what was read, and the ordering verdict."""
    platform = device_factory()
    load, compute = platform.device.stream("load"), platform.device.stream("compute")
    on_host, page, seen = platform.pinned(2), platform.memory(1), platform.memory(0)
    platform.emit(PAGES)

    async def main() -> None:
        load.enqueue("load", touching(copy(on_host, page), write=True), duration_us=load_us)
        loaded = platform.device.event("loaded")
        loaded.record(load)
        if guarded:
            compute.wait(loaded, "the page is loaded")
        compute.enqueue("work", copy(platform.memory(0), platform.memory(0)), duration_us=50)
        compute.enqueue("read", touching(copy(page, seen), write=False), duration_us=1)

    platform.run(main)
    detector = OrderingDetector()
    for event in platform.events:
        detector.feed(event)
    return seen.tolist(), detector.verdict()


def test_a_read_without_the_wait_gets_wrong_bytes_and_is_convicted(device_factory: PlatformFactory) -> None:
    seen, verdict = read_after_load(device_factory, load_us=500, guarded=False)
    assert seen == [1]
    (finding,) = verdict.findings
    assert finding.signature == "ordering: read read x load write of device latent, no edge between compute and load"


def test_it_is_convicted_where_the_bytes_happen_to_be_right(device_factory: PlatformFactory) -> None:
    seen, verdict = read_after_load(device_factory, load_us=10, guarded=False)
    assert seen == [2]
    assert len(verdict.findings) == 1


@pytest.mark.parametrize("load_us", [10, 500])
def test_a_read_behind_the_wait_gets_the_loaded_bytes_and_is_clean(
    device_factory: PlatformFactory, load_us: float
) -> None:
    seen, verdict = read_after_load(device_factory, load_us=load_us, guarded=True)
    assert seen == [2]
    assert verdict.answer == "clean"
