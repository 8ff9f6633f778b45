"""What operations declare when they are enqueued against what they touch when they run."""

from pathlib import Path

import pytest

import repro.run.targets.bundled
from repro.base.probe import Access, PageSet
from repro.record.view import open_run
from repro.schedule.schedule import Schedule
from repro.serve.device.sim import SimDevice
from repro.serve.device.streams import Operation, SimStream
from tests.small import run_small, small_scenario


class WatchedDevice(SimDevice):
    """Keeps what every operation declared beside what it touched."""

    touched: list[tuple[str, Access, tuple[Access, ...]]] = []

    def _commit(self, stream: SimStream, operation: Operation) -> None:
        super()._commit(stream, operation)
        launch = operation.launch
        WatchedDevice.touched += [(launch.name, access, launch.declared) for access in operation.accesses]


@pytest.mark.parametrize("upload_stream", [False, True])
@pytest.mark.parametrize(("picker", "drafts"), [("timed", 0), ("random", 0), ("timed", 3), ("random", 8)])
def test_no_operation_touches_a_page_that_it_has_not_declared(
    picker: str, drafts: int, upload_stream: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repro.run.targets.bundled, "SimDevice", WatchedDevice)
    monkeypatch.setattr(WatchedDevice, "touched", [])
    outcome = run_small(
        tmp_path, small_scenario(drafts=drafts, upload_stream=upload_stream), schedule=Schedule(picker, 7)
    )
    sets = {
        event.id: frozenset(
            page
            for start, stop in zip(event.ranges[::2], event.ranges[1::2], strict=True)
            for page in range(start, stop)
        )
        for event in open_run(outcome.path).events()
        if isinstance(event, PageSet)
    }
    names = {"forward.store", "forward.index", "forward.attend", "loadback.copy_layer", "writeback.copy_layer"}
    drafting = {"spec.store", "spec.index", "spec.attend"} if drafts else set()
    if upload_stream:
        names |= {"forward.upload", "forward.embed", "forward.sample"}
        drafting |= {"spec.propose"} if drafts else set()
    assert {name for name, _, _ in WatchedDevice.touched} == names | drafting
    for name, access, declared in WatchedDevice.touched:
        place = (access.write, access.tier, access.component, access.layer)
        of_place = [each for each in declared if (each.write, each.tier, each.component, each.layer) == place]
        assert any(sets[access.pages] <= sets[each.pages] for each in of_place), f"{name}: {access} of {declared}"
