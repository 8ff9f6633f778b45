"""Whether a wait that nobody missed is implied by others, and by which, or whether no page needs it: read from the log
of a run that had it."""

from collections.abc import Iterable, Iterator, Sequence, Set
from typing import NamedTuple

import msgspec

from detectors.pages.happens_before import HappensBefore
from detectors.pages.ordering import OrderingDetector
from repro.base.probe import Edge, Event, HostSync, Op, OpRef
from repro.search.mutate.sites import Brought


def implied_by(
    events: Sequence[Event], whys: frozenset[str], brought: Set[Brought] | None = None
) -> tuple[str, ...] | None:
    """Return what implies every order that the waits called `whys` bring; None where something does not, or where
    they bring none.

    With `brought`, only those edges of theirs are asked about: (why, source). Each name returned is one that is needed:
    without it, an order would be lost. Where several imply the same one, none is needed and the answer is empty.
    """
    asked = _Asked(whys, brought)
    covered = list(_covered(events, asked))
    if not covered or not all(covered):
        return None
    others = sorted({why for why in _whys(events)} - whys)
    return tuple(why for why in others if not all(_covered(events, asked, why)))


def orders_no_pages(events: Iterable[Event], whys: frozenset[str], brought: Set[Brought] | None = None) -> bool:
    """Return whether the waits called `whys` are there, and no two accesses to a page lose their order without them;
    see `implied_by`."""
    asked, ordering, removed = _Asked(whys, brought), OrderingDetector(), 0
    for event in events:
        if isinstance(event, Op):
            edges = tuple(edge for edge in event.after if not asked.has(edge))
            removed += len(event.after) - len(edges)
            ordering.feed(msgspec.structs.replace(event, after=edges))
        elif isinstance(event, HostSync) and asked.has(event):
            removed += 1
        else:
            ordering.feed(event)
    return removed > 0 and ordering.verdict().answer == "clean"


class _Asked(NamedTuple):
    """Which edges are taken away to see whether others imply them."""

    whys: frozenset[str]
    brought: Set[Brought] | None

    def has(self, edge: Edge | HostSync) -> bool:
        """Return whether an edge is one of them."""
        return edge.why in self.whys and (self.brought is None or (edge.why, edge.source) in self.brought)


def _covered(events: Iterable[Event], asked: _Asked, also: str | None = None) -> Iterator[bool]:
    """Yield for each edge that is `asked` about whether its order holds without them all, and without `also`."""
    order = HappensBefore()
    for event in events:
        if isinstance(event, Op):
            removed = [edge.source for edge in event.after if asked.has(edge)]
            edges = tuple(edge for edge in event.after if not asked.has(edge) and edge.why != also)
            clock = order.feed(msgspec.structs.replace(event, after=edges))
            assert clock is not None
            yield from (bool(clock[order.actor(stream)] >= index) for stream, index in removed)
        elif isinstance(event, HostSync) and (asked.has(event) or event.why == also):
            if asked.has(event):
                yield _known(order, event.by, event.source)
        else:
            order.feed(event)


def _known(order: HappensBefore, host: str, source: OpRef) -> bool:
    stream, index = source
    return bool(order.host_clock(host)[order.actor(stream)] >= index)


def _whys(events: Iterable[Event]) -> Iterator[str]:
    for event in events:
        if isinstance(event, Op):
            yield from (edge.why for edge in event.after)
        elif isinstance(event, HostSync):
            yield event.why
