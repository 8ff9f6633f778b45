"""Copies of one direction share an engine: one at a time, first ready first."""

import pytest

from repro.base.probe import Op
from repro.schedule.pickers import RandomPicker
from tests.litmus.platform import PlatformFactory, nothing


def overlap(one: Op, other: Op) -> bool:
    return one.start_us < other.end_us and other.start_us < one.end_us


@pytest.mark.simulated("a GPU's copies share engines, the spin kernels that stand for them here do not")
def test_copies_of_one_engine_run_one_at_a_time(device_factory: PlatformFactory) -> None:
    platform = device_factory()
    first, second = (platform.device.stream(name, engine="h2d") for name in ("load", "upload"))

    async def main() -> None:
        for _ in range(3):
            first.enqueue("a", nothing, duration_us=50)
            second.enqueue("b", nothing, duration_us=50)

    platform.run(main)
    assert [op.name for op in platform.ops] == ["a", "b"] * 3  # each waits its turn, none starves
    assert all(one.end_us <= other.start_us for one, other in zip(platform.ops, platform.ops[1:], strict=False))


def test_engines_of_two_directions_and_streams_without_one_run_side_by_side(device_factory: PlatformFactory) -> None:
    platform = device_factory()
    device = platform.device
    streams = [device.stream("load", engine="h2d"), device.stream("write", engine="d2h"), device.stream("compute")]

    async def main() -> None:
        for stream in streams:
            stream.enqueue("work", nothing, duration_us=100)

    platform.run(main)
    assert all(overlap(one, other) for one in platform.ops for other in platform.ops)


@pytest.mark.simulated("a GPU's copies share engines, the spin kernels that stand for them here do not")
def test_the_engine_takes_the_copy_that_was_ready_first(device_factory: PlatformFactory) -> None:
    platform = device_factory()
    device = platform.device
    busy = device.stream("busy", engine="h2d")
    held, compute = device.stream("held", engine="h2d"), device.stream("compute")
    late = device.stream("late", engine="h2d")

    async def main() -> None:
        busy.enqueue("busy", nothing, duration_us=300)
        compute.enqueue("producer", nothing, duration_us=100)
        produced = device.event("produced")
        produced.record(compute)
        held.wait(produced, "the source is written")
        held.enqueue("enqueued first, ready second", nothing, duration_us=10)
        late.enqueue("enqueued second, ready first", nothing, duration_us=10)

    platform.run(main)
    copies = [op.name for op in platform.ops if op.stream != "compute"]
    assert copies == ["busy", "enqueued second, ready first", "enqueued first, ready second"]


@pytest.mark.simulated("a GPU's copies share engines, the spin kernels that stand for them here do not")
@pytest.mark.parametrize("seed", range(20))
def test_no_picker_makes_an_engine_do_two_copies_at_once(device_factory: PlatformFactory, seed: int) -> None:
    platform = device_factory(RandomPicker(seed))
    streams = [platform.device.stream(f"s{number}", engine="h2d") for number in range(3)]

    async def main() -> None:
        for number in range(12):
            streams[number % 3].enqueue(f"copy {number}", nothing, duration_us=10)

    platform.run(main)
    assert len(platform.ops) == 12
    spans = sorted((op.start_us, op.end_us) for op in platform.ops)
    assert all(one[1] <= other[0] for one, other in zip(spans, spans[1:], strict=False))


def test_an_engine_is_no_edge(device_factory: PlatformFactory) -> None:
    """That one copy came after the other was luck: no operation carries an edge for it."""
    platform = device_factory()
    first, second = (platform.device.stream(name, engine="h2d") for name in ("load", "upload"))

    async def main() -> None:
        first.enqueue("a", nothing, duration_us=50)
        second.enqueue("b", nothing, duration_us=50)

    platform.run(main)
    assert [op.after for op in platform.ops] == [(), ()]
