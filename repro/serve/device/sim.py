"""A device with CUDA's ordering rules, streams as queues, and virtual time.

`advance` is the whole simulation: it lists what may happen next (an operation starts, an operation
ends, the host's next timer is due), asks the picker, and does it. Listed first is what a real
machine would do first, so index 0 is the natural schedule and any other index a deviation from it.
"""

from asyncio import Future, get_running_loop, sleep
from collections import deque
from collections.abc import Callable, Sequence
from itertools import takewhile

from repro.base.probe import Decision, HostSync, NullProbes, Probes
from repro.serve.device.bursts import RunningBurst, event_of, is_quiet, operation_event
from repro.serve.device.streams import (
    QUEUE_OPERATIONS_MAX,
    Choice,
    CopyEngine,
    Launch,
    Marker,
    Operation,
    SimEvent,
    SimStream,
    start_of,
)

STARTS_KEPT = 512  # how far back a delayed operation looks for others that overtook it


Pick = Callable[[Sequence[Choice]], int]


def pick_timed(choices: Sequence[Choice]) -> int:
    """Pick what a real machine would do: the earliest."""
    return 0


class SimHost:
    """One host process: its own time, its own clock of events, and the streams that it enqueues on.

    Hosts share the virtual time and nothing else; what one of them learns another knows only by message.
    """

    def __init__(self, world: "SimDevice", name: str) -> None:
        self._world = world
        self.name = name  # "" where there is only one
        self.host_us = 0.0  # the host's own time: it may run ahead of now within a burst of enqueues
        self.host_clock = 0

    @property
    def now_us(self) -> float:
        """Return the virtual time."""
        return self._world.time_us

    def host(self, name: str) -> "SimHost":
        """Make another host process; it shares the virtual time and nothing else."""
        return SimHost(self._world, name)

    def stream(self, name: str, engine: str | None = None) -> SimStream:
        """Make a stream; those of one `engine` run one operation at a time, first ready first."""
        return self._world.add_stream(self, self.named(name), engine)

    def named(self, name: str) -> str:
        """Return the name of something of this host."""
        return f"{self.name}.{name}" if self.name else name

    def event(self, name: str) -> SimEvent:
        """Make an event that was never recorded."""
        return self._world.event_type(self, self.named(name))

    def charge(self, us: float) -> None:
        """Say that the host's own work took so long."""
        self.host_us = max(self.host_us, self.now_us) + us

    async def settle(self) -> None:
        """Let the clock reach the host's own time."""
        ahead_us = self.host_us - self.now_us
        await sleep(ahead_us / 1e6 if ahead_us > 0 else 0)

    def tick(self) -> int:
        """Advance the host's logical clock; every host event that detectors order takes one tick."""
        self.host_clock += 1
        return self.host_clock

    def started_since(self, due_us: float) -> bool:
        """Return whether an operation of any host has started at `due_us` or later."""
        self._world.cut_burst()
        starts = self._world.starts
        return bool(starts) and starts[-1][0] >= due_us

    def host_learns(self, marker: Marker, why: str) -> None:
        """Note that the host has seen `marker` reached: an edge from the device to the host."""
        if marker.last >= 0:
            self._world.probes.emit(HostSync(self.tick(), marker.ref, why, self.now_us, self.name))

    async def host_waits(self, marker: Marker, why: str) -> None:
        """Return when `marker` is reached."""
        if not marker.reached:
            await self._world.reaching(marker)
        self.host_learns(marker, why)

    def asked(self, stream: SimStream, launch: Launch) -> Decision | None:
        """Return what the probes want of an operation that is about to be enqueued."""
        return self._world.probes.hit(launch.name, stream.name, launch.layer)

    def stands_alone(self, name: str) -> bool:
        """Return whether operations of this name must not be part of a burst."""
        return self._world.apart(name)

    def joined(self, stream: SimStream) -> None:
        """Take note of a new operation at the end of a queue."""
        self._world.joined_queue(stream)


class SimDevice(SimHost):
    """Streams in virtual time; the `World` that drives the virtual event loop, and its only host, or first."""

    def __init__(
        self,
        probes: Probes | None = None,
        pick: Pick = pick_timed,
        *,
        apart: Callable[[str], bool] = lambda name: False,
        queue_operations_max: int = QUEUE_OPERATIONS_MAX,
    ) -> None:
        """Operations whose names are `apart` are never part of a burst: somebody wants to act between them."""
        super().__init__(self, "")
        self.apart = apart
        self.probes: Probes = probes or NullProbes()
        self.pick = pick
        self.time_us = 0.0
        self.streams: list[SimStream] = []
        self.stream_type, self.event_type = SimStream, SimEvent  # what streams and events are made of
        self._queue_operations_max = queue_operations_max
        self._engines: dict[str, CopyEngine] = {}
        self._waiters: list[tuple[Marker, Future[None]]] = []
        self._in_burst: SimStream | None = None  # the stream that runs a burst: then no other stream runs anything
        self.starts: deque[tuple[float, int]] = deque(maxlen=STARTS_KEPT)  # (start, stream)

    def add_stream(self, host: SimHost, name: str, engine: str | None) -> SimStream:
        """Make a stream that `host` enqueues on."""
        shared = None if engine is None else self._engines.setdefault(engine, CopyEngine(engine))
        stream = self.stream_type(host, name, len(self.streams), shared, self._queue_operations_max)
        self.streams.append(stream)
        if shared is not None:
            shared.streams.append(stream)
        return stream

    async def reaching(self, marker: Marker) -> None:
        """Return when a marker that was not reached yet is."""
        future: Future[None] = get_running_loop().create_future()
        self._waiters.append((marker, future))
        await future

    def joined_queue(self, stream: SimStream) -> None:
        """Take note of a new operation at the end of a queue."""
        if len(stream.queue) == 1 and stream.running is None:
            self._refresh(stream)

    # -- the simulation -----------------------------------------------------------------------

    def advance(self, deadline_us: float | None) -> float:
        """Do one thing, or move the clock to the host's `deadline_us`; return the new now."""
        if self._in_burst is not None and not self._is_alone(self._in_burst):
            self.cut_burst()
        choices = self._choices(deadline_us)
        if deadline_us is not None:
            choices.append(Choice(deadline_us, 2, -1, "timer", "host", (), True))
        if not choices:
            return self.time_us
        choices.sort()
        chosen = choices[self.pick(choices) if len(choices) > 1 else 0]
        # A picker that ignores durations may take something late now; the next timer still holds.
        reached_us = chosen.time_us if deadline_us is None else min(chosen.time_us, deadline_us)
        self.time_us = max(self.time_us, reached_us)
        if chosen.kind == "start":
            self._start(self.streams[chosen.stream])
        elif chosen.kind == "end":
            self._end(self.streams[chosen.stream])
        return self.time_us

    @property
    def idle(self) -> bool:
        """Return whether no operation is enqueued or running."""
        return all(stream.running is None and not stream.queue for stream in self.streams)

    def _choices(self, deadline_us: float | None) -> list[Choice]:
        ends: list[Choice] = []
        starts: list[Choice] = []
        yielding: list[Choice] = []
        for stream in self.streams:
            if stream.ending is not None:
                ends.append(stream.ending)
            elif stream.queue:
                head = stream.queue[0]
                # The host may be ahead of the clock: what it enqueues in its own future is not there yet for a timer
                # that comes before.
                if head.blockers or (deadline_us is not None and head.enqueued_us > deadline_us):
                    continue
                if stream.engine is None or not stream.engine.busy:
                    assert head.starting is not None
                    (yielding if head.yields else starts).append(head.starting)
        waiting = ends + self._served(starts)
        return waiting or self._served(yielding)

    def _served(self, starts: list[Choice]) -> list[Choice]:
        """Return the starts, of each copy engine only the one that has waited longest."""
        if not self._engines:
            return starts
        first: dict[str, Choice] = {}
        for start in sorted(starts):
            engine = self.streams[start.stream].engine
            first.setdefault(engine.name if engine is not None else f"stream {start.stream}", start)
        return list(first.values())

    def _refresh(self, stream: SimStream) -> None:
        """Drop the reached blockers of a stream's head and set when it became ready."""
        head = stream.queue[0]
        if head.blockers:
            head.blockers = tuple(marker for marker in head.blockers if not marker.reached)
        if not head.blockers:
            head.ready_us = max(head.enqueued_us, self.time_us)
            head.delay_us = max(head.delay_us, head.stall_until_us - head.ready_us)
            head.starting = start_of(head, stream.number)

    def _is_alone(self, stream: SimStream) -> bool:
        """Return whether nothing else can run before all that is at the head of a stream has ended."""
        return all(other is stream or is_quiet(other) for other in self.streams)

    def _start(self, stream: SimStream) -> None:
        operation = stream.queue.popleft()
        stream.waiting -= 1 + len(operation.rest)
        if operation.rest and self._is_alone(stream):
            stream.run(RunningBurst(operation, self.time_us))
            self._in_burst = stream
            return
        if operation.rest:
            self._put_back(stream, operation.next())
        operation.start_us = self.time_us
        operation.end_us = self.time_us + operation.launch.duration_us
        self._begin(stream, operation)
        if operation.decision is not None:
            name, delay_us = operation.launch.name, operation.delay_us
            self.probes.carried_out(operation.decision, name, self.time_us, delay_us, op=operation.ref)

    def _put_back(self, stream: SimStream, head: Operation) -> None:
        """Put an operation and its rest at the head of the queue: they are yet to start."""
        stream.queue.appendleft(head)
        stream.waiting += 1 + len(head.rest)

    def _begin(self, stream: SimStream, operation: Operation) -> None:
        """Let an operation read, at its start."""
        stream.run(operation)
        self.starts.append((operation.start_us, stream.number))
        operation.commit = operation.launch.body(operation)

    def _commit(self, stream: SimStream, operation: Operation) -> None:
        """Let an operation write, at its end."""
        if operation.commit is not None:
            operation.commit()
            operation.commit = None
        stream.run(None)
        stream.finished = operation.ref[1]

    def _end(self, stream: SimStream) -> None:
        running = stream.running
        assert running is not None
        if isinstance(running, RunningBurst):
            running.end_by(self.time_us)
            self._in_burst = None
            self._carry_out(stream, running.operations)
        else:
            assert isinstance(running, Operation)
            running.end_us = self.time_us
            self._commit(stream, running)
            self._tell_overtaken(stream, running)
            self.probes.emit(operation_event(running))
        self._unblock(stream)

    def cut_burst(self) -> None:
        """Let the burst that runs, if any, be single operations from now on: another stream may come between them."""
        stream = self._in_burst
        if stream is None:
            return
        assert isinstance(stream.running, RunningBurst)
        ended, running, head = stream.running.cut(self.time_us)
        stream.run(None)
        self._in_burst = None
        self._carry_out(stream, ended)
        if head is not None:
            self._put_back(stream, head)
        if running is not None:
            now_us, self.time_us = self.time_us, running.start_us
            self._begin(stream, running)
            self.time_us = now_us
        elif head is not None:
            self._refresh(stream)
        else:  # all of it had ended, and a schedule had let the host act first
            self._unblock(stream)

    def _carry_out(self, stream: SimStream, operations: Sequence[Operation]) -> None:
        """Run the bodies of operations that have ended, each at its time, and tell of them."""
        now_us = self.time_us
        for operation in operations:
            self.time_us = operation.start_us
            self._begin(stream, operation)
            self.time_us = operation.end_us
            self._commit(stream, operation)
        self.time_us = now_us
        if len(operations) > 1 and not any(each.after for each in operations[1:]):
            self.probes.emit(event_of(operations))
        else:
            for operation in operations:
                self.probes.emit(operation_event(operation))

    def _unblock(self, stream: SimStream) -> None:
        for other in self.streams:
            if not other.queue or other.running is not None:
                continue
            head = other.queue[0]
            if other is stream or (head.blockers and head.may_wait_for(stream)):
                self._refresh(other)
            elif head.yields and not head.blockers:
                head.yields, head.overtaken = False, True  # somebody else has gone first
        if self._waiters:
            for marker, future in self._waiters:
                if marker.reached and not future.done():
                    future.set_result(None)
            self._waiters = [waiter for waiter in self._waiters if not waiter[1].done()]

    def _tell_overtaken(self, stream: SimStream, operation: Operation) -> None:
        """Tell of a decision that changed an order: another stream started something that, without the
        delay, would have started only after this operation had ended."""
        if operation.decision is None:
            return
        natural_end_us = operation.end_us - operation.delay_us
        since = takewhile(lambda start: start[0] >= natural_end_us, reversed(self.starts))  # starts ascend
        late = operation.delay_us > 0 and any(number != stream.number for _, number in since)
        if late or operation.overtaken:
            self.probes.overtaken(operation.decision)
