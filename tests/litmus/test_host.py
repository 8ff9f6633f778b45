"""The host runs ahead of the device and meets it only where it says so."""

import pytest

from repro.serve.device.base import Device
from repro.serve.device.sim import SimDevice
from tests.litmus.platform import PlatformFactory, copy, nothing, write


def test_an_enqueue_returns_before_the_operation_has_run(device_factory: PlatformFactory) -> None:
    platform = device_factory()
    stream = platform.device.stream("compute")
    cell = platform.memory(0)

    async def main() -> None:
        stream.enqueue("write", write(cell, 1), duration_us=1000)
        assert cell[0] == 0
        done = platform.device.event("done")
        done.record(stream)
        assert not done.query()
        assert cell[0] == 0

    platform.run(main)
    assert cell[0] == 1


def test_the_next_step_is_enqueued_before_the_last_one_has_run(device_factory: PlatformFactory) -> None:
    """Step 2 takes step 1's sample on the device; the host reads it a step later."""
    platform = device_factory()
    stream = platform.device.stream("compute")
    slot, on_host = platform.memory(0), [platform.pinned(0), platform.pinned(0)]

    async def main() -> None:
        events = []
        for step in (1, 2):
            stream.enqueue("sample", write(slot, step), duration_us=100)
            stream.enqueue("download", copy(slot, on_host[step - 1]), duration_us=10)
            done = platform.device.event(f"step {step}")
            done.record(stream)
            events.append(done)
        await events[0].synchronize("samples of step 1")
        assert (on_host[0][0], on_host[1][0]) == (1, 0)
        assert not events[1].query()

    platform.run(main)
    assert on_host[1][0] == 2


def test_synchronize_returns_when_the_record_is_reached_and_not_later(device_factory: PlatformFactory) -> None:
    platform = device_factory()
    stream = platform.device.stream("compute")
    cell = platform.memory(0)

    async def main() -> None:
        stream.enqueue("first", write(cell, 1), duration_us=100)
        first = platform.device.event("first")
        first.record(stream)
        stream.enqueue("second", write(cell, 2), duration_us=100)
        await first.synchronize("first")
        assert cell[0] == 1
        assert first.query()
        await stream.synchronize("all of it")
        assert cell[0] == 2

    platform.run(main)


def test_a_blocking_copy_is_an_enqueue_and_a_synchronize(device_factory: PlatformFactory) -> None:
    platform = device_factory()
    stream = platform.device.stream("compute")
    cell, on_host = platform.memory(3), platform.pinned(0)

    async def main() -> None:
        stream.enqueue("download", copy(cell, on_host), duration_us=10)
        await stream.synchronize("blocking copy")
        assert on_host[0] == 3

    platform.run(main)


def test_synchronize_with_one_stream_waits_for_no_other(device_factory: PlatformFactory) -> None:
    platform = device_factory()
    a, b = platform.device.stream("a"), platform.device.stream("b")
    cell = platform.memory(0)

    async def main() -> None:
        a.enqueue("long", write(cell, 1), duration_us=1000)
        b.enqueue("short", nothing, duration_us=1)
        await b.synchronize("b only")
        assert cell[0] == 0

    platform.run(main)


def test_query_and_synchronize_of_an_event_never_recorded_return_at_once(device_factory: PlatformFactory) -> None:
    platform = device_factory()
    stream = platform.device.stream("compute")

    async def main() -> None:
        stream.enqueue("long", nothing, duration_us=1000)
        event = platform.device.event("never")
        assert event.query()
        await event.synchronize("nothing")
        assert not platform.ops

    platform.run(main)


def test_a_host_task_that_sleeps_does_not_hold_the_device(device_factory: PlatformFactory) -> None:
    platform = device_factory()
    stream = platform.device.stream("compute")
    cell = platform.memory(0)

    async def main() -> None:
        stream.enqueue("write", write(cell, 1), duration_us=100)
        await platform.sleep(50)
        assert cell[0] == 0
        await platform.sleep(100)
        assert cell[0] == 1

    platform.run(main)


@pytest.mark.simulated("on a GPU the host's own work takes its real time, and charge adds none")
def test_the_hosts_own_work_delays_what_it_enqueues_next(device_factory: PlatformFactory) -> None:
    platform = device_factory()
    stream = platform.device.stream("compute")

    async def main() -> None:
        stream.enqueue("first", nothing, duration_us=1)
        platform.device.charge(300)
        stream.enqueue("second", nothing, duration_us=1)

    platform.run(main)
    first, second = platform.ops
    assert second.start_us - first.start_us >= 300
    assert all(op.enqueued_us <= op.start_us for op in platform.ops)


def test_the_queue_is_bounded_and_says_which_stream_is_full() -> None:
    device: Device = SimDevice(queue_operations_max=4)
    stream = device.stream("compute")
    for _ in range(4):
        stream.enqueue("step", nothing, duration_us=1)
    with pytest.raises(AssertionError, match=r"stream compute: step is one more than the 4 operations"):
        stream.enqueue("step", nothing, duration_us=1)
