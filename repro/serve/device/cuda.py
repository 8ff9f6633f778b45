"""A CUDA device behind the same contract: torch's streams and events, real time, times known after the fact.

    one operation on its stream:
    waits ── spin: a fault's delay ── START ── kernels of the body ── spin: duration ── kernels of the commit ── END

- The host runs a body and its commit when it enqueues them; what they launch runs on the stream, later. So a body must
  touch device memory and pinned memory by kernels and non-blocking copies alone: a value that it looks at on the host
  is the value at the enqueue.
- START and END are timing events. An `Op` is emitted after it has ended, once the host has met the device (`query`,
  `synchronize`), and in the order of the ends; so are the faults that it carried.
- On an idle stream START is reached as soon as the host has recorded it, and the operation lasts until the host has
  launched all the rest: some 40 us more than its duration. Behind another operation it is some 5 us.
- A stall is a spin of what is left of it at the enqueue: behind a wait it ends later than it would in the simulation.
  A reorder is refused.
- A copy `engine` is not simulated: the copies of one direction share the hardware's engine by themselves, kernels
  don't. Python's own work takes real time, so `charge` adds none.
- All times are divided by `dilation`, and durations are multiplied by it: Python enqueues some 20 times slower than
  the host that is priced in `cost`, and a dilation of 20 restores the proportion.
"""

import time
from asyncio import sleep
from collections import deque
from collections.abc import Iterator
from functools import cache
from itertools import chain
from typing import NamedTuple

import torch

from repro.base.errors import HarnessError
from repro.base.probe import Access, Decision, Edge, HostSync, NullProbes, OpRef, Probes
from repro.serve.device.base import Body, Event, Stream
from repro.serve.device.bursts import operation_event
from repro.serve.device.streams import QUEUE_OPERATIONS_MAX, Launch, Operation, calling_line, query_why

STREAMS_MAX = 32  # torch has so many streams; the next one made is the first again, and would be ordered behind it
WAIT_S_MAX = 60.0  # a wait that is longer is a hang
STARTS_KEPT = 512  # how far back a delayed operation looks for others that overtook it
BASE_KEPT_US = 1e6  # CUDA gives elapsed times in single precision: after 8 s it is off by half a microsecond
CALIBRATION_CLOCKS = 40_000_000  # some 20 ms
CALIBRATIONS = 5  # the first wakes the GPU from its idle clock rate


@cache
def clocks_per_us() -> float:
    """Return how many clocks the current GPU's spin kernel counts in a microsecond; measured once a process."""
    start, end = _timing_event(), _timing_event()
    fastest = 0.0
    for _ in range(CALIBRATIONS):
        start.record()
        torch.cuda._sleep(CALIBRATION_CLOCKS)
        end.record()
        end.synchronize()
        fastest = max(fastest, CALIBRATION_CLOCKS / (start.elapsed_time(end) * 1000))
    return fastest


def _timing_event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)


class Point(NamedTuple):
    """A record of an event: everything enqueued before it has ended once `event` is reached."""

    event: torch.cuda.Event
    sources: tuple[OpRef, ...]  # the last operation of the stream, and those that it waits for by then


class Enqueued(NamedTuple):
    """An operation with the events around it; `number` counts the enqueues of all streams."""

    number: int
    stream: "CudaStream"
    operation: Operation
    start: torch.cuda.Event
    end: torch.cuda.Event


class DeviceClock:
    """Microseconds since it was made, of the host and of reached events, divided by `dilation`."""

    def __init__(self, dilation: float) -> None:
        self._dilation = dilation
        self._base, self._base_us = _timing_event(), 0.0
        self._base.record()
        self._base.synchronize()
        self._zero_s = time.perf_counter()  # behind the base: what the host does now, the device does no earlier

    @property
    def now_us(self) -> float:
        return (time.perf_counter() - self._zero_s) * 1e6 / self._dilation

    def time_of(self, event: torch.cuda.Event) -> float:
        """Return when a timing event was reached."""
        return self._base_us + float(self._base.elapsed_time(event)) * 1000 / self._dilation

    def rebase(self, event: torch.cuda.Event) -> None:
        """Count from a reached `event` from now on, if the base is old."""
        at_us = self.time_of(event)
        if (at_us - self._base_us) * self._dilation > BASE_KEPT_US:
            self._base, self._base_us = event, at_us


class CudaEvent:
    """See `base.Event`. Each record is a new event of CUDA: whoever waits for an earlier one is not moved."""

    def __init__(self, host: "CudaHost", name: str) -> None:
        self._host = host
        self.name = name
        self.point: Point | None = None

    def record(self, stream: Stream) -> None:
        """Move this event behind everything enqueued on `stream` so far."""
        assert isinstance(stream, CudaStream), f"{self.name} is of a CUDA device, {stream.name} is not"
        self.point = stream.point()

    def query(self) -> bool:
        """Return whether the latest record has been reached, and let the host know it."""
        if self.point is None:
            return True
        if not self.point.event.query():
            return False
        self._host.learns(self.point, query_why(self.name))
        return True

    async def synchronize(self, why: str) -> None:
        """Wait on the host until the latest record has been reached. Raises HarnessError after `WAIT_S_MAX`."""
        if self.point is not None:
            await self._host.waits(self.point, why)


class CudaStream:
    """See `base.Stream`."""

    def __init__(self, host: "CudaHost", name: str) -> None:
        self._host = host
        self.name = name
        self.cuda = torch.cuda.Stream()
        self.pending: deque[Enqueued] = deque()  # enqueued and not emitted yet
        self._enqueued = -1  # index of the last operation
        self._edges: list[Edge] = []  # waits in front of the next operation

    def point(self) -> Point:
        """Record an event behind everything enqueued so far, waits that no operation follows yet included."""
        event = torch.cuda.Event()
        event.record(self.cuda)
        own = ((self.name, self._enqueued),) if self._enqueued >= 0 else ()
        return Point(event, (*own, *(edge.source for edge in self._edges)))

    def wait(self, event: Event, why: str) -> None:
        """Hold what is enqueued from now on until the latest record of `event` is reached."""
        assert isinstance(event, CudaEvent), f"stream {self.name} can't wait for an event of another device ({why})"
        if event.point is None:
            return
        self.cuda.wait_event(event.point.event)
        self._edges += [Edge(source, why) for source in event.point.sources if source[0] != self.name]

    async def synchronize(self, why: str) -> None:
        """Wait on the host until everything enqueued so far has finished. Raises HarnessError after `WAIT_S_MAX`."""
        await self._host.waits(self.point(), why)

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
        """Launch an operation: the body and its commit run now, what they launch runs on the stream."""
        self._enqueued += 1
        launch = Launch(name, body, duration_us, layer, step, requests, calling_line(), declared)
        operation = Operation(
            launch=launch,
            ref=(self.name, self._enqueued),
            host=self._host.host_clock,
            enqueued_us=self._host.now_us,
            after=tuple(self._edges),
            blockers=(),
            by=self._host.name,
            rest=deque(),
        )
        self._edges = []
        self._host.launch(self, operation)


class CudaHost:
    """One host process's view: its own clock of events and streams. Hosts share the GPU and nothing else."""

    def __init__(self, world: "CudaDevice", name: str) -> None:
        self._world = world
        self.name = name  # "" where there is only one
        self.host_clock = 0

    @property
    def now_us(self) -> float:
        """Return the wall clock since the device was made, in microseconds of the device."""
        return self._world.clock.now_us

    def host(self, name: str) -> "CudaHost":
        """Make another host process."""
        return CudaHost(self._world, name)

    def named(self, name: str) -> str:
        """Return the name of something of this host."""
        return f"{self.name}.{name}" if self.name else name

    def stream(self, name: str, engine: str | None = None) -> CudaStream:
        """Make a stream; hardware knows by itself which copies share an `engine`."""
        return self._world.add_stream(self, self.named(name))

    def event(self, name: str) -> CudaEvent:
        """Make an event that was never recorded."""
        return CudaEvent(self, self.named(name))

    def tick(self) -> int:
        """Advance the host's logical clock; every host event that detectors order takes one tick."""
        self.host_clock += 1
        return self.host_clock

    def charge(self, us: float) -> None:
        """Do nothing: the host's own work takes its real time."""

    async def settle(self) -> None:
        """Let other tasks act."""
        await sleep(0)

    def started_since(self, due_us: float) -> bool:
        """Return whether an operation of any host has started at `due_us` or later."""
        return any(start_us >= due_us for start_us, _ in self._world.starts())

    def launch(self, stream: CudaStream, operation: Operation) -> None:
        """Launch an operation's kernels."""
        self._world.launch(stream, operation)

    def learns(self, point: Point, why: str) -> None:
        """Note that the host has seen `point` reached: an edge from the device to the host."""
        self._world.collect()
        for source in point.sources:
            self._world.probes.emit(HostSync(self.tick(), source, why, self.now_us, self.name))

    async def waits(self, point: Point, why: str) -> None:
        """Return when `point` is reached; other tasks run meanwhile. Raises HarnessError after `WAIT_S_MAX`."""
        give_up_s = time.perf_counter() + WAIT_S_MAX
        while not point.event.query():
            if time.perf_counter() > give_up_s:
                raise HarnessError(f"the GPU has not reached {point.sources} for {WAIT_S_MAX:.0f} s ({why}); it hangs")
            await sleep(0)  # any other timeout is rounded up to a millisecond
        self.learns(point, why)


class CudaDevice(CudaHost):
    """See `base.Device`: the current GPU, and all that was enqueued on it. Needs a GPU from here on, not before."""

    def __init__(self, probes: Probes | None = None, *, dilation: float = 1.0) -> None:
        super().__init__(self, "")
        self.probes: Probes = probes or NullProbes()
        self._clocks_per_us = clocks_per_us() * dilation
        self.streams: list[CudaStream] = []
        self._launches = 0
        self._starts: deque[tuple[float, str]] = deque(maxlen=STARTS_KEPT)  # (start, stream) of what has ended
        self.clock = DeviceClock(dilation)

    def add_stream(self, host: CudaHost, name: str) -> CudaStream:
        """Make a stream that `host` enqueues on."""
        assert len(self.streams) < STREAMS_MAX, f"stream {name} is one more than the {STREAMS_MAX} that torch has"
        stream = CudaStream(host, name)
        self.streams.append(stream)
        with torch.cuda.stream(stream.cuda):
            torch.empty(1, device="cuda")  # its first memory comes now: a later cudaMalloc may hold up all streams
        return stream

    def launch(self, stream: CudaStream, operation: Operation) -> None:
        """Launch an operation between two timing events, and let it take as long as it should."""
        if len(stream.pending) >= QUEUE_OPERATIONS_MAX:
            self.collect()
        assert len(stream.pending) < QUEUE_OPERATIONS_MAX, (
            f"stream {stream.name}: {operation.launch.name} is one more than the {QUEUE_OPERATIONS_MAX} operations "
            "that may be queued; the host has to synchronize with the device before it runs that far ahead"
        )
        start, end = _timing_event(), _timing_event()
        decision = self.probes.hit(operation.launch.name, stream.name, operation.launch.layer)
        with torch.cuda.stream(stream.cuda):
            if decision is not None:
                self._delay(operation, decision)
            start.record()
            commit = operation.launch.body(operation)
            self._spin(operation.launch.duration_us)
            if commit is not None:
                commit()
            end.record()
        self._launches += 1
        stream.pending.append(Enqueued(self._launches, stream, operation, start, end))

    def _delay(self, operation: Operation, decision: Decision) -> None:
        if decision.reorder:
            raise HarnessError(f"{decision.fault}: a GPU can't let another stream go first; use a delay")
        operation.take(decision)
        operation.delay_us = max(operation.delay_us, operation.stall_until_us - self.now_us)
        self._spin(operation.delay_us)

    def _spin(self, us: float) -> None:
        if us > 0:
            torch.cuda._sleep(round(us * self._clocks_per_us))

    def collect(self) -> None:
        """Emit what has ended, in the order of the ends.

        While one stream is looked at, another goes on. But whatever ended before the last end that the first look finds
        has ended by the second.
        """
        last_us = max((each.operation.end_us for each in self._ended()), default=-1.0)
        ready = [each for each in self._ended() if each.operation.end_us <= last_us]
        for each in sorted(ready, key=lambda each: (each.operation.end_us, each.number)):
            operation = each.operation
            each.stream.pending.popleft()
            self._starts.append((operation.start_us, each.stream.name))
            if operation.decision is not None:
                self._tell_of(operation, operation.decision)
            self.probes.emit(operation_event(operation))
            self.clock.rebase(each.end)

    def _ended(self) -> Iterator[Enqueued]:
        """Yield what has ended and is not emitted yet, with its times."""
        for stream in self.streams:
            for each in stream.pending:
                if not each.end.query():
                    break
                if not each.operation.end_us:
                    self._time(each)
                yield each

    def _time(self, ended: Enqueued) -> None:
        operation = ended.operation
        operation.start_us, operation.end_us = self.clock.time_of(ended.start), self.clock.time_of(ended.end)
        operation.enqueued_us = min(operation.enqueued_us, operation.start_us)  # two clocks, which drift

    def starts(self) -> Iterator[tuple[float, str]]:
        """Yield start and stream of the operations that have started, the last `STARTS_KEPT` of those that ended."""
        pending = chain.from_iterable(stream.pending for stream in self.streams)
        running = ((self.clock.time_of(each.start), each.operation.ref[0]) for each in pending if each.start.query())
        return chain(self._starts, running)

    def _tell_of(self, operation: Operation, decision: Decision) -> None:
        """Tell of a fault that was carried out, and whether another stream started something because of it."""
        delay_us, (name, _) = operation.delay_us, operation.ref
        self.probes.carried_out(decision, operation.launch.name, operation.start_us, delay_us, op=operation.ref)
        natural_end_us = operation.end_us - delay_us
        if delay_us > 0 and any(
            natural_end_us <= start_us <= operation.end_us and stream != name for start_us, stream in self.starts()
        ):
            self.probes.overtaken(decision)
