"""What a GPU does beyond the rules that it shares with the simulated device."""

import asyncio

import pytest

from repro.base.errors import HarnessError
from repro.base.probe import Decision, HostSync, Op
from tests.litmus.conftest import needs_gpu
from tests.litmus.platform import CudaPlatform, nothing
from tests.litmus.test_delays import DELAY, Faulty, two_streams

pytestmark = pytest.mark.gpu

LAUNCH_US_MAX = 20.0  # between two launches that were enqueued long before


@pytest.fixture
def gpu() -> CudaPlatform:
    needs_gpu()
    return CudaPlatform()


def test_operations_are_told_in_the_order_they_ended_and_before_the_host_knows_it(gpu: CudaPlatform) -> None:
    slow, fast = gpu.device.stream("slow"), gpu.device.stream("fast")

    async def main() -> None:
        slow.enqueue("slow", nothing, duration_us=200)
        for _ in range(3):
            fast.enqueue("fast", nothing, duration_us=10)
        await slow.synchronize("the slow one")

    gpu.run(main)
    told = [event.name if isinstance(event, Op) else event.source for event in gpu.events[:5]]
    assert told == ["fast", "fast", "fast", "slow", ("slow", 0)]
    assert isinstance(gpu.events[4], HostSync)
    assert [op.end_us for op in gpu.ops] == sorted(op.end_us for op in gpu.ops)


@pytest.mark.parametrize("us", [1, 10, 100, 1000])
def test_an_operation_takes_its_time(us: float) -> None:
    """Undilated, and behind another, so that the host is ahead: on an idle stream its launches take time in between."""
    needs_gpu()
    gpu = CudaPlatform(dilation=1.0)
    stream = gpu.device.stream("compute")

    async def main() -> None:
        stream.enqueue("before", nothing, duration_us=2000)
        stream.enqueue("busy", nothing, duration_us=us)

    gpu.run(main)
    op = gpu.ops[-1]
    assert us * (1 - gpu.tolerance) <= op.end_us - op.start_us <= us * (1 + gpu.tolerance) + LAUNCH_US_MAX


def test_a_delay_is_in_front_of_an_operation_and_lets_others_overtake(gpu: CudaPlatform) -> None:
    gpu.cuda.probes = probes = Faulty({"load": DELAY})
    two_streams(gpu)
    ops = [event for event in probes.events if isinstance(event, Op)]
    assert [op.name for op in ops] == ["work", "read", "load"]
    assert probes.reordered == {DELAY.fault: 1}


def test_a_delay_too_short_to_matter_fires_and_reorders_nothing(gpu: CudaPlatform) -> None:
    gpu.cuda.probes = probes = Faulty({"load": Decision(delay_us=10.0, fault="loadback.copy_layer.delay")})
    two_streams(gpu)
    assert [event.name for event in probes.events if isinstance(event, Op)] == ["load", "work", "read"]
    assert probes.reordered == {}


def test_a_reorder_is_refused(gpu: CudaPlatform) -> None:
    gpu.cuda.probes = Faulty({"load": Decision(reorder=True, fault="loadback.copy_layer.reorder")})
    with pytest.raises(HarnessError, match=r"loadback\.copy_layer\.reorder: a GPU can't"):
        gpu.device.stream("load").enqueue("load", nothing, duration_us=1)


def test_other_tasks_run_while_one_waits_for_the_gpu(gpu: CudaPlatform) -> None:
    stream = gpu.device.stream("compute")
    laps = 0

    async def others(done: asyncio.Event) -> None:
        nonlocal laps
        while not done.is_set():
            laps += 1
            await asyncio.sleep(0)

    async def main() -> None:
        done = asyncio.Event()
        task = asyncio.create_task(others(done))
        stream.enqueue("long", nothing, duration_us=500)
        await stream.synchronize("the long one")
        done.set()
        await task

    gpu.run(main)
    assert laps > 100


def test_a_long_run_keeps_its_times_exact() -> None:
    """Elapsed times are single precision: the base moves along, and every operation still takes its time."""
    needs_gpu()
    gpu = CudaPlatform(dilation=1.0)
    stream = gpu.device.stream("compute")

    async def main() -> None:
        for _ in range(60):
            stream.enqueue("busy", nothing, duration_us=50_000)
            await stream.synchronize("one by one")

    gpu.run(main)
    assert all(one.end_us <= other.start_us for one, other in zip(gpu.ops, gpu.ops[1:], strict=False))
    assert gpu.ops[-1].end_us > 2e6
    assert all(op.end_us - op.start_us == pytest.approx(50_000, rel=gpu.tolerance) for op in gpu.ops)
