"""Simulated streams and events: queues of operations, and markers in them.

    host:    enqueue ── enqueue ── record ── wait ── enqueue        (in program order, ahead of the device)
    stream:  [ op 0 ] [ op 1 ] <marker>      [ op 2, blocked by another stream's marker ]

An event is a name for the markers of its latest record. Whoever waits takes the markers, not the
event: a later record gives the event new ones and moves nobody.
"""

import sys
from collections import deque
from dataclasses import dataclass, field
from functools import lru_cache
from types import CodeType
from typing import Literal, NamedTuple, Protocol

from repro.base.probe import Access, Decision, Edge, OpRef
from repro.serve.device.base import Body, Commit, Event, Stream

QUEUE_OPERATIONS_MAX = 8192  # CUDA's launch queue is about 1,024 deep; a step of 78 layers takes 320
LAUNCH_US = 2.0  # host time of one kernel launch or asynchronous copy


class Marker(NamedTuple):
    """A point in a stream: everything up to operation `last` has finished."""

    stream: "SimStream"
    last: int

    @property
    def reached(self) -> bool:
        return self.stream.finished >= self.last

    @property
    def ref(self) -> OpRef:
        return (self.stream.name, self.last)


class Gate(Protocol):
    """Something that an operation waits for and that nobody may have enqueued yet: a flag in memory."""

    @property
    def reached(self) -> bool:
        """Return whether it is open; looked at whenever an operation has ended."""


class Host(Protocol):
    """What streams and events need of the device that made them."""

    name: str
    host_clock: int
    host_us: float

    def charge(self, us: float) -> None:
        """Say that the host's own work took so long."""

    def host_learns(self, marker: Marker, why: str) -> None:
        """Note that the host has seen `marker` reached."""

    async def host_waits(self, marker: Marker, why: str) -> None:
        """Return when `marker` is reached."""

    def asked(self, stream: "SimStream", launch: "Launch") -> Decision | None:
        """Return what the probes want of an operation that is about to be enqueued."""

    def stands_alone(self, name: str) -> bool:
        """Return whether operations of this name must not be part of a burst."""

    def joined(self, stream: "SimStream") -> None:
        """Take note of a new operation at the end of a queue."""


class SimEvent:
    """See `base.Event`."""

    def __init__(self, host: Host, name: str) -> None:
        self._host = host
        self.name = name
        self.markers: tuple[Marker, ...] = ()

    def record(self, stream: Stream) -> None:
        """Move this event behind everything enqueued on `stream` so far."""
        assert isinstance(stream, SimStream), f"{self.name} is not of the capture of {stream.name}"
        self.markers = stream.markers()

    def query(self) -> bool:
        """Return whether the latest record has been reached, and let the host know it."""
        if not all(marker.reached for marker in self.markers):
            return False
        for marker in self.markers:
            self._host.host_learns(marker, query_why(self.name))
        return True

    async def synchronize(self, why: str) -> None:
        """Wait on the host until the latest record has been reached."""
        for marker in self.markers:
            await self._host.host_waits(marker, why)


def query_why(event: str) -> str:
    """Return what the host's learning from a query is called."""
    return f"query {event}"


@dataclass(frozen=True)
class CopyEngine:
    """Hardware that the streams of one copy direction share: one copy at a time, first ready first."""

    name: str
    streams: list["SimStream"] = field(default_factory=list)

    @property
    def busy(self) -> bool:
        return any(stream.running is not None for stream in self.streams)


class Launch(NamedTuple):
    """What the host fixes when it enqueues an operation, and a captured graph repeats."""

    name: str
    body: Body
    duration_us: float
    layer: int
    step: int
    requests: tuple[str, ...]
    site: str
    declared: tuple[Access, ...] = ()


class Choice(NamedTuple):
    """One thing that may happen next. `time_us` is when a real machine would do it."""

    time_us: float
    rank: int  # ends before starts before timers at the same time
    stream: int  # -1 for the host's timer
    kind: Literal["end", "start", "timer"]
    name: str
    declared: tuple[Access, ...]
    noticed: bool  # whether anybody could tell when it happens


def start_of(operation: "Operation", stream: int) -> Choice:
    """Return the start of an operation that waits for nothing more; it reads then."""
    launch = operation.launch
    noticed = not all(access.write for access in launch.declared)
    time_us = operation.ready_us + operation.delay_us
    return Choice(time_us, 1, stream, "start", launch.name, launch.declared, noticed)


def end_of(running: "Running", stream: int) -> Choice:
    """Return the end of what runs; it writes then."""
    launch = running.launch
    noticed = any(access.write for access in launch.declared)
    return Choice(running.end_us, 0, stream, "end", launch.name, launch.declared, noticed)


class Running(Protocol):
    """What a stream runs: an operation, or several as one."""

    @property
    def launch(self) -> Launch:
        """Return what schedules are asked about when it ends."""

    @property
    def end_us(self) -> float:
        """Return when it ends."""


@dataclass(slots=True)
class Operation:
    """A launch in its stream; `blockers` are the markers it still waits for.

    `rest` has the launches behind it, each with the time of its enqueue, that wait for nothing but their turn.
    """

    launch: Launch
    ref: OpRef
    host: int
    enqueued_us: float
    after: tuple[Edge, ...]
    blockers: tuple[Marker | Gate, ...]
    by: str
    rest: deque[tuple[Launch, float]]
    starting: Choice | None = None  # its start, once nothing blocks it
    closed: bool = False  # nothing more joins `rest`: an event was recorded behind the last launch
    ready_us: float = 0.0
    delay_us: float = 0.0
    stall_until_us: float = 0.0
    decision: Decision | None = None  # what the probes asked of it
    yields: bool = False  # it lets another stream go first
    overtaken: bool = False  # it let one go
    start_us: float = 0.0
    end_us: float = 0.0
    commit: Commit | None = None
    accesses: list[Access] = field(default_factory=list)

    def access(self, access: Access) -> None:
        self.accesses.append(access)

    def follows(self, source: OpRef, why: str) -> None:
        self.after = (*self.after, Edge(source, why))

    def may_wait_for(self, stream: "SimStream") -> bool:
        """Return whether the end of an operation of this stream may let it start. A gate may open at any end."""
        return any(not isinstance(each, Marker) or each.stream is stream for each in self.blockers)

    def take(self, decision: Decision) -> None:
        """Take what the probes want of it."""
        self.decision = decision
        self.delay_us = decision.delay_us
        self.stall_until_us = decision.stall_until_us or 0.0
        self.yields = decision.reorder

    def next(self) -> "Operation":
        """Return the first of the rest, with the rest behind it; this operation's own rest is empty then."""
        launch, enqueued_us = self.rest.popleft()
        stream, index = self.ref
        rest, self.rest = self.rest, deque()
        return Operation(launch, (stream, index + 1), self.host, enqueued_us, (), (), self.by, rest, closed=self.closed)


class SimStream:
    """See `base.Stream`."""

    def __init__(
        self, host: Host, name: str, number: int, engine: CopyEngine | None, queue_operations_max: int
    ) -> None:
        self._host = host
        self._queue_operations_max = queue_operations_max
        self.name = name
        self.number = number
        self.engine = engine
        self.queue: deque[Operation] = deque()
        self.running: Running | None = None
        self.ending: Choice | None = None  # the end of what runs
        self.enqueued = -1  # index of the last operation enqueued
        self.finished = -1  # index of the last operation finished
        self.waiting = 0  # operations enqueued and not started
        self._waits: list[tuple[Marker, str]] = []  # waits that hold the next operation
        self._gates: list[Gate] = []  # gates that hold the next operation

    def run(self, running: Running | None) -> None:
        """Take note of what runs from now on."""
        self.running = running
        self.ending = None if running is None else end_of(running, self.number)

    def markers(self) -> tuple[Marker, ...]:
        """Return what has to be reached for everything enqueued so far to have happened.

        Waits that no operation follows yet count: an event recorded behind them passes them on.
        """
        if self.queue:
            self.queue[-1].closed = True
        return (Marker(self, self.enqueued), *(marker for marker, _ in self._waits))

    def wait(self, event: Event, why: str) -> None:
        """Hold what is enqueued from now on until the latest record of `event` is reached."""
        assert isinstance(event, SimEvent), f"stream {self.name} can't wait for an event of a capture ({why})"
        for marker in event.markers:
            if marker.last >= 0 and marker.stream is not self:
                self._waits.append((marker, why))

    def hold(self, gate: Gate) -> None:
        """Hold the next operation until `gate` is open (as `cuStreamWaitValue` does); the operation itself
        says whom it followed."""
        self._gates.append(gate)

    async def synchronize(self, why: str) -> None:
        """Wait on the host until everything enqueued so far has finished."""
        for marker in self.markers():
            await self._host.host_waits(marker, why)

    def enqueue(
        self,
        name: str,
        body: Body,
        *,
        duration_us: float,
        layer: int = -1,
        step: int = -1,
        requests: tuple[str, ...] = (),
        declared: tuple[Access, ...] = (),
    ) -> None:
        """Append an operation. Costs the host one launch; never waits for the device."""
        self._host.charge(LAUNCH_US)
        self.append(Launch(name, body, duration_us, layer, step, requests, calling_line(), declared))

    def append(self, launch: Launch) -> None:
        """Append a launch at no cost to the host."""
        assert self.waiting < self._queue_operations_max, (
            f"stream {self.name}: {launch.name} is one more than the {self._queue_operations_max} operations "
            "that may be queued; the host has to synchronize with the device before it runs that far ahead"
        )
        self.enqueued += 1
        self.waiting += 1
        decision = self._host.asked(self, launch)
        apart = decision is not None or self._host.stands_alone(launch.name)
        if not apart and self._takes(launch):
            self.queue[-1].rest.append((launch, self._host.host_us))
            return
        operation = Operation(
            launch=launch,
            ref=(self.name, self.enqueued),
            host=self._host.host_clock,
            enqueued_us=self._host.host_us,
            after=tuple(Edge(marker.ref, why) for marker, why in self._waits),
            blockers=(*(marker for marker, _ in self._waits), *self._gates),
            by=self._host.name,
            rest=deque(),
            closed=apart,
        )
        self._waits, self._gates = [], []
        if decision is not None:
            operation.take(decision)
        self.queue.append(operation)
        self._host.joined(self)

    def _takes(self, launch: Launch) -> bool:
        """Return whether a launch may join the rest of the last operation: the same step, and nothing in between."""
        if not self.queue or self._waits or self._gates:
            return False
        last = self.queue[-1]
        alike = last.launch.step == launch.step and last.launch.requests == launch.requests
        return alike and not last.closed and last.host == self._host.host_clock


def calling_line() -> str:
    """Return file:line of the stack's function that enqueues, seen through its private helpers."""
    frame = sys._getframe(2)
    while frame.f_code.co_name[0] == "_" and frame.f_back is not None:
        frame = frame.f_back
    return _line_of(frame.f_code, frame.f_lasti)


@lru_cache(maxsize=4096)
def _line_of(code: CodeType, instruction: int) -> str:
    """Return file:line of an instruction; a frame's own `f_lineno` counts lines from the function's first."""
    line = next(line for start, stop, line in code.co_lines() if start <= instruction < stop)
    ours = code.co_filename.rpartition("repro/")[2]
    return f"{ours.rpartition('site-packages/')[2]}:{line}"  # another package's path begins at its name
