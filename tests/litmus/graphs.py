"""Captured graphs over the simulated device: what a function enqueued once, replayed without its host code.

    capture:  origin  [ a ] ─record─┐            ┌─wait─ [ d ]
              branch                └─wait─ [ b ] ─record─┘
    replay:   a, b, d again with the same waits, behind the stream it is replayed on

What a guard decided while the function ran is frozen in: a wait that it left out because nothing was
loading then is left out of every replay. Bodies keep what they captured; memory they read when they run.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

from repro.base.probe import Access
from repro.serve.device.base import Body, Device, Event, Stream
from repro.serve.device.sim import SimHost
from repro.serve.device.streams import Launch, SimEvent, SimStream, calling_line

Function = Callable[[Device, Stream], None]

GRAPH_LAUNCH_US = 10.0  # host time of one graph launch, whatever is in it

ORIGIN = 0
Reached = dict[int, int]  # by branch: how many of its launches lie before a point of the capture


@dataclass
class _Replaying:
    """The real streams of one replay, by branch, and the real events, by number."""

    streams: list[SimStream]
    events: dict[int, SimEvent]
    step: int
    requests: tuple[str, ...]


_Action = Callable[[_Replaying], None]


class CapturedEvent:
    """An event recorded in a capture; outside of it there is no such event."""

    def __init__(self, number: int, name: str) -> None:
        self.number = number
        self.name = name
        self.reached: Reached | None = None

    def record(self, stream: Stream) -> None:
        """Move this event behind everything captured on `stream` so far."""
        assert isinstance(stream, CapturingStream), f"{self.name} is of a capture, {stream.name} is not"
        stream.record(self)

    def query(self) -> bool:
        """Refuse: nothing runs during a capture."""
        self._refuse("query")

    async def synchronize(self, why: str) -> None:
        """Refuse: nothing runs during a capture."""
        self._refuse("synchronize")

    def _refuse(self, verb: str) -> NoReturn:
        raise AssertionError(f"{verb} of {self.name}: the host can't meet the device during a capture")


@dataclass
class CapturingStream:
    """A stream that takes note instead of enqueuing (`base.Stream`)."""

    name: str
    branch: int
    actions: list[_Action]
    joined: bool  # a branch joins the capture by waiting for an event of it
    reached: Reached = field(default_factory=dict)

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
        """Take note of an operation."""
        assert self.joined, f"{name}: stream {self.name} has to wait for an event of the capture first"
        launch = Launch(name, body, duration_us, layer, step, requests, calling_line(), declared)
        branch = self.branch
        self.reached[branch] = self.reached.get(branch, 0) + 1

        def act(replay: _Replaying) -> None:
            renamed = launch._replace(step=replay.step, requests=replay.requests)
            replay.streams[branch].append(renamed)

        self.actions.append(act)

    def wait(self, event: Event, why: str) -> None:
        """Take note of a wait for an event of this capture; never recorded, it orders nothing."""
        assert isinstance(event, CapturedEvent), (
            f"stream {self.name} can't wait within a capture for an event recorded outside ({why}): "
            "a replay would not wait for its later records. Wait on the stream before the replay"
        )
        if event.reached is None:
            return
        self.joined = True
        for branch, launches in event.reached.items():
            self.reached[branch] = max(self.reached.get(branch, 0), launches)
        branch, number = self.branch, event.number
        self.actions.append(lambda replay: replay.streams[branch].wait(replay.events[number], why))

    def record(self, event: CapturedEvent) -> None:
        """Take note of a record on this stream."""
        event.reached = dict(self.reached)
        branch, number = self.branch, event.number
        self.actions.append(lambda replay: replay.events[number].record(replay.streams[branch]))

    async def synchronize(self, why: str) -> None:
        """Refuse: nothing runs during a capture."""
        raise AssertionError(f"synchronize of {self.name}: the host can't meet the device during a capture")


class Capturing:
    """The device that a captured function sees (`base.Device`)."""

    def __init__(self, device: SimHost, name: str) -> None:
        self._device = device
        self._name = name
        self._actions: list[_Action] = []
        self._streams: list[CapturingStream] = []
        self._events = 0
        self.origin = self._branch(name, joined=True)

    def stream(self, name: str, engine: str | None = None) -> CapturingStream:
        """Make a branch."""
        assert engine is None, f"branch {name}: a captured branch takes no copy engine"
        return self._branch(f"{self._name}.{name}", joined=False)

    def event(self, name: str) -> CapturedEvent:
        """Make an event of this capture."""
        self._events += 1
        return CapturedEvent(self._events - 1, f"{self._name}.{name}")

    def host(self, name: str) -> NoReturn:
        """Refuse: a host is no part of a capture."""
        raise AssertionError(f"host {name} within the capture of {self._name}")

    @property
    def name(self) -> str:
        """Return the name of the host that captures."""
        return self._device.name

    def named(self, name: str) -> str:
        """Return the name of something of this host."""
        return self._device.named(name)

    def started_since(self, due_us: float) -> bool:
        """Return whether an operation of any host has started at `due_us` or later."""
        return self._device.started_since(due_us)

    @property
    def now_us(self) -> float:
        """Return the virtual time."""
        return self._device.now_us

    def tick(self) -> int:
        """Advance the host's logical clock."""
        return self._device.tick()

    def charge(self, us: float) -> None:
        """Say that the host's own work took so long; capturing takes time, replaying does not."""
        self._device.charge(us)

    async def settle(self) -> None:
        """Refuse: nothing may happen in the middle of a capture."""
        raise AssertionError(f"settle within the capture of {self._name}")

    def close(self) -> "SimGraph":
        """Return the graph. Raises AssertionError for a branch that does not come back to the origin."""
        for stream in self._streams[1:]:
            launches = stream.reached.get(stream.branch, 0)
            assert self.origin.reached.get(stream.branch, 0) >= launches, (
                f"capture of {self._name}: {stream.name} has {launches} operations and the origin does not "
                "wait for the last; record an event behind it and wait for that"
            )
        branches = [self._device.stream(stream.name) for stream in self._streams[1:]]
        return SimGraph(self._device, self._name, self._actions, branches, self._events)

    def _branch(self, name: str, *, joined: bool) -> CapturingStream:
        stream = CapturingStream(name, len(self._streams), self._actions, joined)
        self._streams.append(stream)
        return stream


@dataclass(frozen=True)
class SimGraph:
    """See `base.Graph`. Its branches run on streams of its own."""

    device: SimHost
    name: str
    actions: list[_Action]
    branches: list[SimStream]
    events: int

    def replay(self, stream: Stream, *, step: int = -1, requests: tuple[str, ...] = ()) -> None:
        """Enqueue everything again; no code of the captured function runs."""
        assert isinstance(stream, SimStream), f"{stream.name} is no stream of the simulated device"
        self.device.charge(GRAPH_LAUNCH_US)
        events = {number: self.device.event(f"{self.name}.{number}") for number in range(self.events)}
        replaying = _Replaying([stream, *self.branches], events, step, requests)
        for act in self.actions:
            act(replaying)


def capture(device: Device, name: str, function: Function) -> SimGraph:
    """Run `function` once and return what it enqueued, to be replayed without its host code.

    It is given a device and a stream to enqueue on; both take note, and nothing runs.
    """
    assert not isinstance(device, Capturing), f"capture of {name} within the capture of {device.origin.name}"
    assert isinstance(device, SimHost), f"{device} is not the simulated device"
    capturing = Capturing(device, name)
    function(capturing, capturing.origin)
    return capturing.close()
