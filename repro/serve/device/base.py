"""What the stack asks of a device: streams, events, and a host that meets them only where it says.

The rules are CUDA's, and `tests/litmus` holds one test for each:

- Operations of one stream run in order; two streams are unordered but for events.
- `Event.wait` binds to the latest record at the host call. An event never recorded orders nothing.
- What a body captured when it was enqueued is fixed; what it reads from memory it reads when it runs.
- An operation reads at its start and writes at its end: `body` does the reading and computing and
  returns the closure that writes.
- The host meets the device only in `query`, `synchronize` and blocking copies, which are an enqueue
  and a `synchronize` of the stream.
"""

from collections.abc import Callable
from typing import Protocol

from repro.base.probe import Access, OpRef

Commit = Callable[[], None]


class Recorder(Protocol):
    """Given to a body when it runs: where accessors write down what they touched."""

    @property
    def ref(self) -> OpRef:
        """Return the running operation's name."""

    def access(self, access: Access) -> None:
        """Note a read or write of pages."""

    def follows(self, source: OpRef, why: str) -> None:
        """Note an operation whose end this one had to wait for, known only now: of another rank, say."""


Body = Callable[[Recorder], Commit | None]


class Event(Protocol):
    """A point in a stream, set by `record`."""

    def record(self, stream: "Stream") -> None:
        """Move this event behind everything enqueued on `stream` so far."""

    def query(self) -> bool:
        """Return whether the latest record has been reached; true when never recorded."""

    async def synchronize(self, why: str) -> None:
        """Wait on the host until the latest record has been reached; returns at once when never recorded."""


class Stream(Protocol):
    """A queue of operations that run in order."""

    @property
    def name(self) -> str:
        """Return the name that events and reports use."""

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
        """Append an operation. Costs the host one launch; never waits for the device.

        `declared` is the most that the body may touch, as the host knows it now; schedule search tells
        by it which operations could conflict. The body gives its recorder what it really touched.
        """

    def wait(self, event: Event, why: str) -> None:
        """Hold what is enqueued from now on until the latest record of `event` is reached.

        `why` names the hazard that this wait prevents; reports quote it.
        """

    async def synchronize(self, why: str) -> None:
        """Wait on the host until everything enqueued so far has finished."""


class Device(Protocol):
    """Owner of streams and events, as one host process sees it."""

    def host(self, name: str) -> "Device":
        """Make another host process on the same machines: it shares the virtual time and nothing else."""

    def stream(self, name: str, engine: str | None = None) -> Stream:
        """Make a stream. Streams of one copy `engine` run one operation at a time, first ready first."""

    def event(self, name: str) -> Event:
        """Make an event that was never recorded."""

    @property
    def now_us(self) -> float:
        """Return the virtual time."""

    def tick(self) -> int:
        """Advance the host's logical clock by one host event and return it."""

    def charge(self, us: float) -> None:
        """Say that the host's own work took so long; later enqueues happen that much later."""

    @property
    def name(self) -> str:
        """Return the name of this host process; "" where there is only one."""

    def named(self, name: str) -> str:
        """Return the name of something of this host."""

    def started_since(self, due_us: float) -> bool:
        """Return whether an operation of any host has started at `due_us` or later."""

    async def settle(self) -> None:
        """Let the clock reach the host's own time, so that others may act before it goes on."""
