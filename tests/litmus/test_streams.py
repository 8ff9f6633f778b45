"""One stream runs in order, two streams are unordered, and nobody waits unasked."""

import pytest

from repro.schedule.pickers import RandomPicker
from tests.litmus.platform import PlatformFactory, copy, nothing, write

SEEDS = range(20)


@pytest.mark.parametrize("seed", SEEDS)
def test_operations_of_one_stream_run_in_order_whoever_picks(device_factory: PlatformFactory, seed: int) -> None:
    platform = device_factory(RandomPicker(seed))
    stream, other = platform.device.stream("compute"), platform.device.stream("other")

    async def main() -> None:
        for number in range(6):
            stream.enqueue(f"op{number}", nothing, duration_us=6 - number)
            other.enqueue("noise", nothing, duration_us=1)

    platform.run(main)
    ops = [op for op in platform.ops if op.stream == "compute"]
    assert [op.name for op in ops] == [f"op{number}" for number in range(6)]
    assert all(before.end_us <= after.start_us for before, after in zip(ops, ops[1:], strict=False))


def last_of_two_writers(device_factory: PlatformFactory, seed: int) -> int:
    platform = device_factory(RandomPicker(seed))
    cell = platform.memory(0)

    async def main() -> None:
        platform.device.stream("a").enqueue("write 1", write(cell, 1), duration_us=10)
        platform.device.stream("b").enqueue("write 2", write(cell, 2), duration_us=10)

    platform.run(main)
    return int(cell[0])


@pytest.mark.simulated("a GPU has no picker")
def test_two_streams_are_unordered_both_orders_occur(device_factory: PlatformFactory) -> None:
    assert {last_of_two_writers(device_factory, seed) for seed in SEEDS} == {1, 2}


def test_the_natural_order_of_two_streams_is_by_time(device_factory: PlatformFactory) -> None:
    platform = device_factory()
    cell = platform.memory(0)

    async def main() -> None:
        platform.device.stream("slow").enqueue("slow", write(cell, 1), duration_us=100)
        platform.device.stream("fast").enqueue("fast", write(cell, 2), duration_us=10)

    platform.run(main)
    assert [op.name for op in platform.ops] == ["fast", "slow"]
    assert cell[0] == 1


def test_no_stream_is_a_default_stream_that_others_wait_for(device_factory: PlatformFactory) -> None:
    platform = device_factory()
    first = platform.device.stream("default")
    other = platform.device.stream("other")
    cell, seen = platform.memory(0), platform.memory(-1)

    async def main() -> None:
        first.enqueue("long", write(cell, 1), duration_us=1000)
        other.enqueue("read", copy(cell, seen), duration_us=1)
        first.enqueue("last", nothing, duration_us=1)

    platform.run(main)
    assert seen[0] == 0  # it did not wait for the long one
    assert [op.name for op in platform.ops] == ["read", "long", "last"]


def test_an_operation_that_yields_no_commit_still_takes_its_time(device_factory: PlatformFactory) -> None:
    platform = device_factory()

    async def main() -> None:
        platform.device.stream("compute").enqueue("busy", nothing, duration_us=70)

    platform.run(main)
    (op,) = platform.ops
    assert op.end_us - op.start_us == pytest.approx(70, rel=platform.tolerance, abs=0)
