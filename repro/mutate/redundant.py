"""Whether a wait that nobody missed is implied by others, and by which: read from the log of a run that had it."""

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from detectors.happens_before import HappensBefore
from repro.base.probe import Event, HostSync, Op, OpRef


def implied_by(events: Sequence[Event], whys: frozenset[str]) -> tuple[str, ...] | None:
    """Return what implies every order that the waits called `whys` bring; None where something does not.

    Each name is one that is needed: without it, an order would be lost. Where several imply the same one,
    none is needed and the answer is empty.
    """
    if not all(_covered(events, whys)):
        return None
    others = sorted({why for why in _whys(events)} - whys)
    return tuple(why for why in others if not all(_covered(events, whys, frozenset({why}))))


def _covered(events: Iterable[Event], whys: frozenset[str], also: frozenset[str] = frozenset()) -> Iterator[bool]:
    """Yield for each order that `whys` brought whether it holds without them, and without those of `also`."""
    order, gone = HappensBefore(), whys | also
    for event in events:
        if isinstance(event, Op):
            removed = [edge.source for edge in event.after if edge.why in whys]
            kept = tuple(edge for edge in event.after if edge.why not in gone)
            clock = order.feed(msgspec.structs.replace(event, after=kept))
            assert clock is not None
            yield from (bool(clock[order.actor(stream)] >= index) for stream, index in removed)
        elif isinstance(event, HostSync) and event.why in gone:
            if event.why in whys:
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
