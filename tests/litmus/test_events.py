"""Events: a wait takes the latest record at the host call, and nothing else."""

import pytest

from repro.schedule.pickers import RandomPicker
from tests.litmus.platform import PlatformFactory, copy, nothing, write

SEEDS = range(20)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_wait_orders_the_record_before_what_follows(device_factory: PlatformFactory, seed: int) -> None:
    platform = device_factory(RandomPicker(seed))
    load, compute = platform.device.stream("load"), platform.device.stream("compute")
    page, seen = platform.memory(0), platform.memory(-1)

    async def main() -> None:
        load.enqueue("load", write(page, 7), duration_us=500)
        done = platform.device.event("done")
        done.record(load)
        compute.wait(done, "the page is loaded")
        compute.enqueue("read", copy(page, seen), duration_us=1)

    platform.run(main)
    assert seen[0] == 7


def test_a_wait_holds_only_what_follows_on_its_own_stream(device_factory: PlatformFactory) -> None:
    platform = device_factory()
    load, compute, other = (platform.device.stream(name) for name in ("load", "compute", "other"))

    async def main() -> None:
        compute.enqueue("before", nothing, duration_us=1)
        load.enqueue("load", nothing, duration_us=500)
        done = platform.device.event("done")
        done.record(load)
        compute.wait(done, "loaded")
        compute.enqueue("behind", nothing, duration_us=1)
        other.enqueue("free", nothing, duration_us=1)

    platform.run(main)
    assert [op.name for op in platform.ops] == ["before", "free", "load", "behind"]


def test_a_wait_for_an_event_never_recorded_orders_nothing(device_factory: PlatformFactory) -> None:
    platform = device_factory()
    load, compute = platform.device.stream("load"), platform.device.stream("compute")
    page, seen = platform.memory(0), platform.memory(-1)

    async def main() -> None:
        done = platform.device.event("done")
        assert done.query()
        compute.wait(done, "loaded")  # the record comes too late for this wait
        load.enqueue("load", write(page, 7), duration_us=500)
        done.record(load)
        compute.enqueue("read", copy(page, seen), duration_us=1)

    platform.run(main)
    assert seen[0] == 0


def test_a_wait_before_the_next_record_takes_the_previous_lap_of_a_ring(device_factory: PlatformFactory) -> None:
    platform = device_factory()
    load, compute = platform.device.stream("load"), platform.device.stream("compute")
    page, seen = platform.memory(0), platform.memory(-1)

    async def main() -> None:
        slot = platform.device.event("slot 0")
        load.enqueue("first lap", write(page, 1), duration_us=10)
        slot.record(load)
        await slot.synchronize("the slot is free")
        compute.wait(slot, "loaded")  # completes at once: that lap is over
        load.enqueue("second lap", write(page, 2), duration_us=500)
        slot.record(load)
        compute.enqueue("read", copy(page, seen), duration_us=1)

    platform.run(main)
    assert seen[0] == 1


def test_a_later_record_does_not_move_an_earlier_wait(device_factory: PlatformFactory) -> None:
    platform = device_factory()
    load, compute = platform.device.stream("load"), platform.device.stream("compute")

    async def main() -> None:
        done = platform.device.event("done")
        load.enqueue("first", nothing, duration_us=10)
        done.record(load)
        compute.wait(done, "the first")
        load.enqueue("second", nothing, duration_us=500)
        done.record(load)
        compute.enqueue("behind the first", nothing, duration_us=1)

    platform.run(main)
    assert [op.name for op in platform.ops] == ["first", "behind the first", "second"]


def test_a_wait_binds_to_the_latest_of_several_records(device_factory: PlatformFactory) -> None:
    platform = device_factory()
    load, compute = platform.device.stream("load"), platform.device.stream("compute")

    async def main() -> None:
        done = platform.device.event("done")
        for number in range(3):
            load.enqueue(f"load {number}", nothing, duration_us=50)
            done.record(load)
        compute.wait(done, "all three")
        compute.enqueue("read", nothing, duration_us=1)

    platform.run(main)
    assert [op.name for op in platform.ops][-1] == "read"


def test_a_record_covers_what_was_enqueued_before_it_and_no_more(device_factory: PlatformFactory) -> None:
    platform = device_factory()
    load, compute = platform.device.stream("load"), platform.device.stream("compute")

    async def main() -> None:
        done = platform.device.event("done")
        done.record(load)  # nothing is there yet
        load.enqueue("late", nothing, duration_us=500)
        compute.wait(done, "nothing")
        compute.enqueue("read", nothing, duration_us=1)

    platform.run(main)
    assert [op.name for op in platform.ops] == ["read", "late"]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_record_passes_on_the_waits_in_front_of_it(device_factory: PlatformFactory, seed: int) -> None:
    """a ─event─> b (no operation) ─event─> c: c runs after a."""
    platform = device_factory(RandomPicker(seed))
    a, b, c = (platform.device.stream(name) for name in "abc")
    cell, seen = platform.memory(0), platform.memory(-1)

    async def main() -> None:
        of_a, of_b = platform.device.event("of a"), platform.device.event("of b")
        a.enqueue("write", write(cell, 7), duration_us=500)
        of_a.record(a)
        b.wait(of_a, "a has written")
        of_b.record(b)
        c.wait(of_b, "b has seen a")
        c.enqueue("read", copy(cell, seen), duration_us=1)
        assert not of_b.query()

    platform.run(main)
    assert seen[0] == 7


def test_a_wait_for_ones_own_stream_is_no_deadlock(device_factory: PlatformFactory) -> None:
    platform = device_factory()
    stream = platform.device.stream("compute")

    async def main() -> None:
        done = platform.device.event("done")
        stream.enqueue("first", nothing, duration_us=10)
        done.record(stream)
        stream.wait(done, "its own past")
        stream.enqueue("second", nothing, duration_us=10)

    platform.run(main)
    assert [op.name for op in platform.ops] == ["first", "second"]
