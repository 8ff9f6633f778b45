"""The seam between the stack and the harness: events that the stack emits, and points where faults may act.

The stack emits events and asks `Probes.hit` at named points; it knows nothing of who listens.
Events are plain data in the order they happened, so a detector reads a live run and a file alike.
Times are virtual microseconds. An operation is named by its stream and its index on that stream.
"""

from collections.abc import Iterable, Iterator
from typing import Literal, Protocol

import msgspec

Tier = str  # "device" or "host"; with the worker's name before it where there are several: "D0.device"
Component = Literal["latent", "index", "slot", "row"]  # a slot holds a transfer's metadata, a row a request's
OpRef = tuple[str, int]  # (stream, index on it)
PAGE_SETS_VALID = 32_768  # a PageSet's id may be used until so many newer ones have been named


class Event(msgspec.Struct, frozen=True, tag_field="e", omit_defaults=True):
    """Base of all events."""


class PageSet(Event, frozen=True, tag="pages"):
    """Names a set of pages: half-open ranges, flat as (start, stop, start, stop, ...)."""

    id: int
    ranges: tuple[int, ...]


class Access(msgspec.Struct, frozen=True, array_like=True):
    """One read or write of a set of pages by an operation, as its accessor executed it."""

    write: bool
    tier: Tier
    component: Component
    layer: int
    pages: int  # PageSet id
    request: str  # the request that it was for; "" for no single one
    granted: int = 0  # a remote write: the clock of the pages' own host when it offered them


class Edge(msgspec.Struct, frozen=True, array_like=True):
    """`source` happened before the operation that carries this edge; `why` names the wait."""

    source: OpRef
    why: str


class Op(Event, frozen=True, tag="op"):
    """A device operation that has finished: it read at `start_us` and wrote at `end_us`."""

    stream: str
    index: int
    name: str  # what it did, e.g. "loadback.copy_layer", "index", "attend"
    layer: int  # -1 when of no layer
    step: int  # engine step or transfer number, -1 when of none
    site: str  # file:line of the stack that enqueued it
    host: int  # host clock at the enqueue
    enqueued_us: float
    start_us: float
    end_us: float
    after: tuple[Edge, ...] = ()  # event waits since the previous operation of this stream
    accesses: tuple[Access, ...] = ()
    requests: tuple[str, ...] = ()
    by: str = ""  # the host that enqueued it, where there are several


class Part(msgspec.Struct, frozen=True, array_like=True):
    """One operation of a burst: what its fellows do not share."""

    name: str
    layer: int
    enqueued_us: float
    start_us: float
    end_us: float
    accesses: tuple[Access, ...] = ()


class Burst(Event, frozen=True, tag="burst"):
    """Operations `index`, `index` + 1, ... of a stream, all of one step, during which no other stream ran anything.

    It says the same as an `Op` for each part, in fewer bytes; `unrolled` gives these. `after` and `host` are the
    first operation's, and the host did not wait or learn anything while it enqueued the others.
    """

    stream: str
    index: int
    step: int
    host: int
    sites: tuple[str, ...]  # one a part
    parts: tuple[Part, ...]
    after: tuple[Edge, ...] = ()
    requests: tuple[str, ...] = ()
    by: str = ""

    @property
    def end_us(self) -> float:
        """Return when the last operation ended."""
        return self.parts[-1].end_us

    @property
    def operations(self) -> tuple[Op, ...]:
        """Return the burst's operations."""
        return tuple(
            Op(
                self.stream, self.index + number, part.name, part.layer, self.step, site, self.host, part.enqueued_us,
                part.start_us, part.end_us, () if number else self.after, part.accesses, self.requests, self.by,
            )
            for number, (part, site) in enumerate(zip(self.parts, self.sites, strict=True))
        )  # fmt: skip


class HostSync(Event, frozen=True, tag="sync"):
    """The host learnt that `source` had finished (event query or synchronise)."""

    host: int
    source: OpRef
    why: str
    at_us: float
    by: str = ""


class HostMessage(Event, frozen=True, tag="message"):
    """A host has received what another had sent: what the sender knew then, the receiver knows now."""

    what: str
    source: str
    sent: int  # the sender's clock
    target: str
    received: int  # the receiver's clock
    at_us: float


class PageEvent(Event, frozen=True, tag="page"):
    """Pages changed hands; `generation` is what a holder must present from now on."""

    what: Literal["alloc", "free", "publish"]
    tier: Tier
    pages: int  # PageSet id
    owner: str
    host: int  # clock of the host that owns the tier
    at_us: float


class BadRead(Event, frozen=True, tag="bad_read"):
    """A read found bytes whose stamp is not the expected one (evidence layer 2).

    `tokens` rows were wrong in `pages`; `first_position` is the lowest wrong token position.
    `origin` is 0 for a first-hand wrong read, else the id of the bad read whose taint it met.
    """

    id: int
    stream: str
    index: int
    component: Component
    layer: int
    request: str
    tokens: int
    first_position: int
    pages: int
    origin: int
    at_us: float


class RequestEvent(Event, frozen=True, tag="request"):
    """A request moved: received, admitted, first_token, finished, aborted, late_result, retracted."""

    what: str
    request: str
    at_us: float
    detail: dict[str, int | float | str] = {}


class Tokens(Event, frozen=True, tag="tokens"):
    """Tokens committed for a request, with the model's log-probability of each."""

    request: str
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    at_us: float


class CacheEvent(Event, frozen=True, tag="cache"):
    """A cache movement: load_back, write_back, evict_device, evict_host, reclaim_host, prefix_hit, store, prefetch,
    storage_miss, storage_full, transfer, ..."""

    what: str
    tokens: int
    at_us: float
    request: str = ""
    detail: dict[str, int | float | str] = {}


class Corrupted(msgspec.Struct, frozen=True, array_like=True):
    """A page of which `rows` hold other bytes than they should, from now on."""

    tier: Tier
    component: Component
    layer: int
    page: int
    rows: int


class FaultEvent(Event, frozen=True, tag="fault"):
    """A fault fired at a point; `us` is its delay where it has one, `corrupted` what it overwrote."""

    name: str
    point: str
    at_us: float
    us: float = 0.0
    op: OpRef | None = None
    actor: str = ""
    corrupted: tuple[Corrupted, ...] = ()


class LimitEvent(Event, frozen=True, tag="limit"):
    """A bound was reached (queue full, retries spent, pool exhausted)."""

    what: str
    at_us: float
    detail: dict[str, int | float | str] = {}


AnyEvent = (
    PageSet
    | Op
    | Burst
    | HostSync
    | HostMessage
    | PageEvent
    | BadRead
    | RequestEvent
    | Tokens
    | CacheEvent
    | FaultEvent
    | LimitEvent
)


def unrolled(events: Iterable[Event]) -> Iterator[Event]:
    """Yield the events with the operations of each burst in its place."""
    for event in events:
        if isinstance(event, Burst):
            yield from event.operations
        else:
            yield event


class Decision(msgspec.Struct, frozen=True):
    """What the harness asks of a point that was hit. Who carries out a change of time hands it back to the probes."""

    delay_us: float = 0.0
    stall_until_us: float | None = None
    reorder: bool = False
    evict_tokens: int = 0
    kind: str = ""  # the kind of the fault that fired last: some points act by it
    fault: str = ""  # a name for the harness; the stack does not read it


class Probes(Protocol):
    """What the harness gives the stack. The null one makes the stack run alone."""

    def emit(self, event: Event) -> None:
        """Take one event; must not change the stack."""

    def hit(self, point: str, actor: str, layer: int = -1) -> Decision | None:
        """Return what is asked at `point` of this `actor`, or None."""

    def carried_out(
        self, decision: Decision, point: str, at_us: float, delay_us: float, *, op: OpRef | None = None, actor: str = ""
    ) -> None:
        """Hear that an operation or a message has come when a decision wanted it to, `delay_us` late."""

    def overtaken(self, decision: Decision) -> None:
        """Hear that something went first because of a decision."""


class NullProbes:
    """Probes that do nothing: the stack runs alone."""

    def emit(self, event: Event) -> None:
        """Drop the event."""

    def hit(self, point: str, actor: str, layer: int = -1) -> Decision | None:
        """Never ask for anything."""
        return None

    def carried_out(
        self, decision: Decision, point: str, at_us: float, delay_us: float, *, op: OpRef | None = None, actor: str = ""
    ) -> None:
        """Do nothing."""

    def overtaken(self, decision: Decision) -> None:
        """Do nothing."""
