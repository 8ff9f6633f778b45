"""Faults of time: a delay, a stall and a reorder change when, never what came before what."""

from collections import Counter

import pytest

from repro.base.probe import Decision, Event, FaultEvent, NullProbes, Op, OpRef
from repro.schedule.pickers import Pick, RandomPicker, timed
from repro.serve.device.sim import SimDevice
from tests.litmus.platform import Platform, SimPlatform, copy, nothing, write

DELAY = Decision(delay_us=400.0, fault="loadback.copy_layer.delay")


class Faulty(NullProbes):
    """Asks for a fault at operations of some names; the first `times` of them."""

    def __init__(self, decisions: dict[str, Decision], times: int = 1_000) -> None:
        self.decisions = decisions
        self.times = times
        self.events: list[Event] = []
        self.reordered: Counter[str] = Counter()

    def carried_out(
        self, decision: Decision, point: str, at_us: float, delay_us: float, *, op: OpRef | None = None, actor: str = ""
    ) -> None:
        self.events.append(FaultEvent(decision.fault, point, at_us, delay_us, op, actor))

    def overtaken(self, decision: Decision) -> None:
        self.reordered[decision.fault] += 1

    def emit(self, event: Event) -> None:
        self.events.append(event)

    def hit(self, point: str, actor: str, layer: int = -1) -> Decision | None:
        decision = self.decisions.get(point)
        self.times -= decision is not None
        return decision if self.times >= 0 else None


class FaultyPlatform(SimPlatform):
    def __init__(self, decisions: dict[str, Decision], pick: Pick = timed, times: int = 1_000) -> None:
        super().__init__(pick)
        self.probes = Faulty(decisions, times)
        self.sim = SimDevice(self.probes, pick)
        self.device = self.sim

    @property
    def ops(self) -> list[Op]:
        return [event for event in self.probes.events if isinstance(event, Op)]

    @property
    def faults(self) -> list[FaultEvent]:
        return [event for event in self.probes.events if isinstance(event, FaultEvent)]


def two_streams(platform: Platform) -> list[str]:
    """Run a load of 10 us and, on another stream, work that would start 90 us later; return the order."""
    load, compute = platform.device.stream("load"), platform.device.stream("compute")

    async def main() -> None:
        load.enqueue("load", nothing, duration_us=10)
        compute.enqueue("work", nothing, duration_us=100)
        compute.enqueue("read", nothing, duration_us=10)

    platform.run(main)
    return [op.name for op in platform.ops]


def test_without_a_fault_the_load_is_first() -> None:
    assert two_streams(SimPlatform()) == ["load", "work", "read"]


def test_a_delay_lets_others_overtake_and_counts_as_reordered() -> None:
    platform = FaultyPlatform({"load": DELAY})
    assert two_streams(platform) == ["work", "read", "load"]
    assert platform.probes.reordered == {"loadback.copy_layer.delay": 1}
    (fault,) = platform.faults
    assert (fault.name, fault.point, fault.us, fault.op) == ("loadback.copy_layer.delay", "load", 400.0, ("load", 0))


def test_a_delay_too_short_to_matter_fires_and_reorders_nothing() -> None:
    platform = FaultyPlatform({"load": Decision(delay_us=1.0, fault="loadback.copy_layer.delay")})
    assert two_streams(platform) == ["load", "work", "read"]
    assert len(platform.faults) == 1
    assert platform.probes.reordered == {}


@pytest.mark.parametrize("seed", range(20))
def test_a_delay_keeps_causality_whoever_picks(seed: int) -> None:
    platform = FaultyPlatform({"load": DELAY}, RandomPicker(seed))
    load, compute = platform.device.stream("load"), platform.device.stream("compute")
    page, seen, after = platform.memory(0), platform.memory(0), platform.memory(0)

    async def main() -> None:
        load.enqueue("load", write(page, 7), duration_us=10)
        loaded = platform.device.event("loaded")
        loaded.record(load)
        compute.wait(loaded, "loaded")
        compute.enqueue("read", copy(page, seen), duration_us=10)
        load.enqueue("behind", copy(page, after), duration_us=10)

    platform.run(main)
    assert (seen[0], after[0]) == (7, 7)


def test_a_stall_ends_at_its_time_however_late_the_operation_became_ready() -> None:
    platform = FaultyPlatform({"load": Decision(stall_until_us=1000.0, fault="loadback.copy_layer.stall")})
    load, compute = platform.device.stream("load"), platform.device.stream("compute")

    async def main() -> None:
        compute.enqueue("producer", nothing, duration_us=600)
        produced = platform.device.event("produced")
        produced.record(compute)
        load.wait(produced, "the source is written")
        load.enqueue("load", nothing, duration_us=10)
        load.enqueue("load", nothing, duration_us=10)

    platform.run(main)
    first, second = (op for op in platform.ops if op.stream == "load")
    assert first.start_us == 1000.0
    assert second.start_us == first.end_us  # its stall is over


def test_a_reorder_lets_one_other_stream_go_first() -> None:
    reorder = Decision(reorder=True, fault="loadback.copy_layer.reorder")
    platform = FaultyPlatform({"load": reorder})
    assert two_streams(platform) == ["work", "load", "read"]
    assert platform.probes.reordered == {"loadback.copy_layer.reorder": 1}


def test_a_reorder_behind_a_wait_still_lets_another_go_first() -> None:
    reorder = Decision(reorder=True, fault="loadback.copy_layer.reorder")
    platform = FaultyPlatform({"load": reorder})
    load, compute = platform.device.stream("load"), platform.device.stream("compute")

    async def main() -> None:
        compute.enqueue("producer", nothing, duration_us=10)
        produced = platform.device.event("produced")
        produced.record(compute)
        load.wait(produced, "the source is written")
        load.enqueue("load", nothing, duration_us=10)
        compute.enqueue("read", nothing, duration_us=50)

    platform.run(main)
    assert [op.name for op in platform.ops] == ["producer", "read", "load"]


def test_a_reorder_with_nobody_else_to_go_does_not_hang_and_is_not_counted() -> None:
    reorder = Decision(reorder=True, fault="loadback.copy_layer.reorder")
    platform = FaultyPlatform({"load": reorder})

    async def main() -> None:
        platform.device.stream("load").enqueue("load", nothing, duration_us=10)

    platform.run(main)
    assert [op.name for op in platform.ops] == ["load"]
    assert platform.probes.reordered == {}
