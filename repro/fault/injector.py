"""Carries out a fault plan at the stack's probe points, and counts what became of it."""

from asyncio import get_running_loop
from collections import OrderedDict
from collections.abc import Callable

import msgspec

from repro.base.probe import Decision, Event, FaultEvent, OpRef, unrolled
from repro.base.rng import uniform
from repro.fault.plan import Fault

Sink = Callable[[Event], None]

ACTORS_MAX = 65_536  # per point; the hits of the one silent longest are forgotten beyond that
SEPARATOR = " + "  # between the names of faults that fired at one operation


class FaultCounts(msgspec.Struct):
    """What became of one fault: armed (planned), reached (its point was hit), fired, changed an order."""

    armed: int = 1
    reached: int = 0
    fired: int = 0
    reordered: int = 0


def loop_now_us() -> float:
    """Return the time of the running event loop: virtual on the bundled stack."""
    return get_running_loop().time() * 1e6


class _Planned:
    """One fault of the plan. Its draws depend on its name and place among faults of that name only."""

    def __init__(self, fault: Fault, nth_of_name: int, counts: FaultCounts) -> None:
        self.fault = fault
        self.counts = counts
        self._draw_key = f"{fault.name}#{nth_of_name}"
        self._fired = 0

    def fires(self, seed: int, actor: str, nth: int) -> bool:
        """Return whether the fault takes the nth hit of an actor, and count it."""
        self.counts.reached += 1
        when = self.fault.when
        if nth <= when.skip or (when.times is not None and self._fired >= when.times):
            return False
        if uniform(seed, "fault", self._draw_key, actor, nth) >= when.probability:
            return False
        self._fired += 1
        self.counts.fired += 1
        return True


class Injector:
    """The `Probes` of a run: passes events to the sinks and decides each hit.

    A decision is a function of (seed, fault, actor, nth hit of that actor at the point), so another fault,
    a new site or a busier actor never shifts the draws of this one.
    """

    def __init__(
        self,
        faults: tuple[Fault, ...],
        seed: int,
        sinks: tuple[Sink, ...] = (),
        now_us: Callable[[], float] = loop_now_us,
        record: Sink | None = None,
    ) -> None:
        """`record` hears each event first, a burst as one event; `sinks` hear the operations of a burst one by one."""
        self.faults = faults
        self._seed = seed
        self._sinks = sinks
        self._record = record
        self._now_us = now_us
        self._at: dict[str, list[_Planned]] = {}
        self._hits: dict[str, OrderedDict[str, int]] = {}  # hits by point and actor; the longest silent actor is first
        self.counts: dict[str, FaultCounts] = {}
        for fault in faults:
            counts = self.counts.setdefault(fault.name, FaultCounts(armed=0))
            counts.armed += 1
            self._at.setdefault(fault.at, []).append(_Planned(fault, counts.armed, counts))

    def listen(self, sink: Sink) -> None:
        """Add a sink: it hears each event after the sinks that are there already."""
        self._sinks = (*self._sinks, sink)

    def emit(self, event: Event) -> None:
        """Pass an event on."""
        if self._record is not None:
            self._record(event)
        if self._sinks:
            for each in unrolled((event,)):
                for sink in self._sinks:
                    sink(each)

    def hit(self, point: str, actor: str, layer: int = -1) -> Decision | None:
        """Return what the faults at this point ask for, merged; None for nothing."""
        if point not in self._at:
            return None
        decision: Decision | None = None
        for fault in self.firing(point, actor):
            decision = _merge(decision, fault)
            # The device reports a fault of time itself, when it takes effect (`carried_out`).
            if not fault.do.timing:
                self.emit(FaultEvent(fault.name, point, self._now_us(), fault.do.time_us, None, actor))
        return decision

    def firing(self, point: str, actor: str) -> list[Fault]:
        """Count a hit of a point, and return the faults that fire at it; the caller reports them."""
        planned = self._at.get(point)
        if planned is None:
            return []
        nth = self._count_hit(point, actor)
        return [each.fault for each in planned if each.fires(self._seed, actor, nth)]

    def carried_out(
        self, decision: Decision, point: str, at_us: float, delay_us: float, *, op: OpRef | None = None, actor: str = ""
    ) -> None:
        """Report that a fault of time took effect: when, where, and on which operation."""
        self.emit(FaultEvent(decision.fault, point, at_us, delay_us, op, actor))

    def overtaken(self, decision: Decision) -> None:
        """Count the faults of a decision that changed an order."""
        for name in decision.fault.split(SEPARATOR):
            self.counts[name].reordered += 1

    def _count_hit(self, point: str, actor: str) -> int:
        hits = self._hits.setdefault(point, OrderedDict())
        nth = hits[actor] = hits.get(actor, 0) + 1
        hits.move_to_end(actor)
        if len(hits) > ACTORS_MAX:
            hits.popitem(last=False)
        return nth


def _merge(decision: Decision | None, fault: Fault) -> Decision:
    before = decision or Decision()
    names = f"{before.fault}{SEPARATOR}{fault.name}" if before.fault else fault.name
    return msgspec.structs.replace(fault.do.added_to(before), fault=names, kind=fault.do.name)
