"""Hand-built event streams: a tiny world whose streams, host clock and page sets keep themselves."""

from typing import Any

from detectors.base import DetectorVerdict, Finding
from repro.base.probe import (
    Access,
    AnyEvent,
    BadRead,
    Component,
    Edge,
    HostSync,
    Op,
    OpRef,
    PageEvent,
    PageSet,
    Tier,
)
from repro.record.events import decode_event, encode_line


class World:
    """Emits events in the order in which its methods are called."""

    def __init__(self) -> None:
        self.events: list[AnyEvent] = []
        self.host = 0
        self._next: dict[str, int] = {}
        self._sets: dict[tuple[int, ...], int] = {}
        self._bad_reads = 0

    @property
    def now_us(self) -> float:
        return 10.0 * len(self.events)

    def pages(self, *pages: int) -> int:
        """Return the id of a set of pages, named once."""
        if pages not in self._sets:
            self._sets[pages] = len(self._sets) + 1
            ranges = tuple(bound for page in pages for bound in (page, page + 1))
            self.events.append(PageSet(self._sets[pages], ranges))
        return self._sets[pages]

    def access(
        self,
        verb: str,
        *pages: int,
        layer: int = 0,
        request: str = "",
        tier: Tier = "device",
        component: Component = "index",
    ) -> Access:
        return Access(verb == "write", tier, component, layer, self.pages(*pages), request)

    def op(
        self,
        stream: str,
        name: str,
        *accesses: Access,
        after: tuple[OpRef, ...] = (),
        host: int | None = None,
        **changes: Any,
    ) -> OpRef:
        """Emit an operation that ends now; `host` is the host clock when it was enqueued (now)."""
        index = self._next.get(stream, 0)
        self._next[stream] = index + 1
        fields: dict[str, Any] = {
            "layer": accesses[0].layer if accesses else -1,
            "step": 1,
            "site": f"serve/{stream}.py:1",
            "enqueued_us": self.now_us,
            "start_us": self.now_us,
            "end_us": self.now_us + 10,
            "requests": tuple(sorted({access.request for access in accesses if access.request})),
        }
        self.events.append(
            Op(
                stream=stream,
                index=index,
                name=name,
                host=self.host if host is None else host,
                accesses=accesses,
                after=tuple(Edge(source, "a wait of the test") for source in after),
                **(fields | changes),
            )
        )
        return stream, index

    def read(
        self, stream: str, *pages: int, after: tuple[OpRef, ...] = (), host: int | None = None, **how: Any
    ) -> OpRef:
        return self.op(stream, f"{stream}.read", self.access("read", *pages, **how), after=after, host=host)

    def write(
        self, stream: str, *pages: int, after: tuple[OpRef, ...] = (), host: int | None = None, **how: Any
    ) -> OpRef:
        return self.op(stream, f"{stream}.write", self.access("write", *pages, **how), after=after, host=host)

    def sync(self, source: OpRef) -> None:
        """The host learns that an operation has finished."""
        self.host += 1
        self.events.append(HostSync(self.host, source, "a synchronize of the test", self.now_us))

    def page_event(self, what: Any, *pages: int, owner: str = "a", tier: Tier = "device") -> int:
        """Emit a change of owner and return its host clock."""
        number = self.pages(*pages)
        self.host += 1
        self.events.append(PageEvent(what, tier, number, owner, self.host, self.now_us))
        return self.host

    def bad_read(
        self, op: OpRef, request: str, *, origin: int = 0, layer: int = 2, pages: tuple[int, ...] = (3,)
    ) -> int:
        """Emit a wrong read of an operation that has not ended yet; return its id."""
        self._bad_reads += 1
        self.events.append(
            BadRead(
                self._bad_reads, op[0], op[1], "index", layer, request, tokens=64, first_position=128,
                pages=self.pages(*pages), origin=origin, at_us=self.now_us,
            )
        )  # fmt: skip
        return self._bad_reads

    def next_ref(self, stream: str) -> OpRef:
        return stream, self._next.get(stream, 0)


def judged(detector: Any, events: list[AnyEvent]) -> DetectorVerdict:
    """Return the verdict after all events. Asserts that the same events read from a file agree."""
    verdict = _fed(detector, events)
    from_file = [decode_event(encode_line(event)) for event in events]
    assert _fed(type(detector)(), from_file) == verdict
    return verdict


def _fed(detector: Any, events: list[AnyEvent]) -> DetectorVerdict:
    for event in events:
        detector.feed(event)
    verdict: DetectorVerdict = detector.verdict()
    return verdict


def only(verdict: DetectorVerdict) -> Finding:
    """Return the single finding of an anomaly."""
    assert verdict.answer == "anomaly", verdict
    (finding,) = verdict.findings
    return finding
