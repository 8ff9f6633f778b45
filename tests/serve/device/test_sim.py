"""The simulated device's own promises, beside CUDA's rules: what it records, and where time goes."""

import asyncio
from collections.abc import Sequence

import pytest

from repro.base.clock import DeadlockError, run_virtual
from repro.base.probe import Access, HostSync
from repro.serve.device.base import Recorder
from repro.serve.device.sim import SimDevice
from repro.serve.device.streams import Choice
from tests.litmus.platform import SimPlatform, nothing


def enqueue_privately(stream: object) -> None:
    _deeper(stream)


def _deeper(stream: object) -> None:
    stream.enqueue("op", nothing, duration_us=1)  # type: ignore[attr-defined]


def test_an_operation_is_recorded_with_its_place_its_waits_and_what_it_touched() -> None:
    platform = SimPlatform()
    load, compute = platform.device.stream("load"), platform.device.stream("compute")

    def read(recorder: Recorder) -> None:
        assert recorder.ref == ("compute", 1)
        recorder.access(Access(False, "device", "index", 3, 1, "a"))

    async def main() -> None:
        load.enqueue("copy", nothing, duration_us=10)
        done = platform.device.event("done")
        done.record(load)
        compute.enqueue("first", nothing, duration_us=10)
        compute.wait(done, "the layer is loaded")
        compute.enqueue("read", read, duration_us=10, layer=3, step=7, requests=("a", "b"))

    platform.run(main)
    op = next(op for op in platform.ops if op.name == "read")
    assert (op.stream, op.index, op.layer, op.step, op.requests) == ("compute", 1, 3, 7, ("a", "b"))
    assert [(edge.source, edge.why) for edge in op.after] == [(("load", 0), "the layer is loaded")]
    assert op.accesses == (Access(False, "device", "index", 3, 1, "a"),)
    assert platform.ops[0].after == ()


def test_the_site_is_the_public_function_that_enqueued() -> None:
    platform = SimPlatform()
    stream = platform.device.stream("compute")

    async def main() -> None:
        enqueue_privately(stream)

    platform.run(main)
    line = enqueue_privately.__code__.co_firstlineno + 1
    assert platform.ops[0].site.endswith(f"test_sim.py:{line}")


def test_what_the_host_learns_is_recorded_in_the_order_it_learnt_it() -> None:
    platform = SimPlatform()
    stream = platform.device.stream("compute")

    async def main() -> None:
        stream.enqueue("op", nothing, duration_us=10)
        event = platform.device.event("done")
        event.record(stream)
        assert not event.query()  # teaches the host nothing
        await event.synchronize("the samples are there")
        assert event.query()

    platform.run(main)
    learnt = [event for event in platform.events if isinstance(event, HostSync)][:2]
    assert [(sync.source, sync.why) for sync in learnt] == [
        (("compute", 0), "the samples are there"),
        (("compute", 0), "query done"),
    ]
    assert learnt[0].host < learnt[1].host


def test_the_clock_never_passes_a_timer_of_the_host() -> None:
    device = SimDevice()
    stream = device.stream("compute")
    woken_us = []

    async def main() -> None:
        stream.enqueue("long", nothing, duration_us=1000)
        for _ in range(5):
            await asyncio.sleep(100e-6)
            woken_us.append(round(device.now_us))

    run_virtual(main(), device)
    assert woken_us == [100, 200, 300, 400, 500]


def test_settle_lets_the_clock_reach_the_hosts_own_time() -> None:
    device = SimDevice()

    async def main() -> None:
        device.charge(250)
        assert device.now_us == 0
        await device.settle()
        assert device.now_us == pytest.approx(250)

    run_virtual(main(), device)


def test_an_error_in_an_operation_ends_the_run() -> None:
    device = SimDevice()

    def broken(recorder: Recorder) -> None:
        raise ValueError("page 12 is out of range")

    async def main() -> None:
        stream = device.stream("compute")
        stream.enqueue("broken", broken, duration_us=1)
        await stream.synchronize("never")

    with pytest.raises(ValueError, match="page 12"):
        run_virtual(main(), device)


def test_a_host_that_waits_for_nothing_is_a_deadlock_and_not_a_hang() -> None:
    with pytest.raises(DeadlockError):
        run_virtual(asyncio.Event().wait(), SimDevice())


def test_idle_says_whether_anything_is_queued_or_runs() -> None:
    platform = SimPlatform()
    stream = platform.device.stream("compute")

    async def main() -> None:
        assert platform.sim.idle
        stream.enqueue("op", nothing, duration_us=10)
        assert not platform.sim.idle
        await stream.synchronize("done")
        assert platform.sim.idle

    platform.run(main)


@pytest.mark.parametrize(("write", "noticed"), [(False, {"start"}), (True, {"end"})], ids=["reads", "writes"])
def test_an_operation_is_noticed_when_it_reads_at_its_start_and_writes_at_its_end(
    write: bool, noticed: set[str]
) -> None:
    offered: set[tuple[str, bool]] = set()

    def pick(choices: Sequence[Choice]) -> int:
        offered.update((each.kind, each.noticed) for each in choices)
        return 0

    platform = SimPlatform(pick)
    touches = (Access(write, "device", "index", 0, 1, ""),)

    async def main() -> None:
        for name in ("one", "other"):
            platform.device.stream(name).enqueue("op", nothing, duration_us=10, declared=touches)
        await asyncio.sleep(1e-3)

    platform.run(main)
    assert {kind for kind, is_noticed in offered if is_noticed} == noticed | {"timer"}
    assert {kind for kind, is_noticed in offered if not is_noticed} == {"start", "end"} - noticed
