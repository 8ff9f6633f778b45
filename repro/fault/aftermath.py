"""Follows the bytes that a fault has changed: whether an operation read them, and whether the canary noticed.

A change that lands where nobody reads again says nothing about detectors, so it doesn't count for them. The recorded
accesses say who reads, and a copy is followed by the bytes themselves, not by what the detectors say:

    changed ──> read by a step ──> a first-hand bad read of that page by that very read: detected; else missed
       ├──────> copied to another page, and followed there too
       └──────> overwritten, or its page given back: never read
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from repro.base.probe import BadRead, Component, Corrupted, Event, Op, OpRef, PageEvent, Tier
from repro.fault.damage import same
from repro.serve.kv.pool import KVPool, Rows

READS = ("forward.index", "forward.attend", "spec.index", "spec.attend")  # they compare what they read
COPIES = ("loadback.copy_layer", "writeback.copy_layer", "transfer.write")
Key = tuple[Tier, Component, int]


class Spot(NamedTuple):
    """A page of one layer and component that holds wrong bytes."""

    pool: KVPool
    component: Component
    layer: int
    page: int
    rows: NDArray[np.bool_]  # (page_tokens,): which are wrong
    held: Rows  # all that the page holds, wrong and right
    at_us: float

    @property
    def key(self) -> Key:
        return self.pool.tier, self.component, self.layer

    @property
    def still_wrong(self) -> bool:
        """Return whether any of the wrong rows has not been overwritten."""
        now = self.pool.read(self.component, self.layer, np.array([self.page], np.int32))
        return bool((same(now, self.held)[0] & self.rows).any())

    def as_corrupted(self) -> Corrupted:
        """Return this spot as the event log has it."""
        return Corrupted(*self.key, self.page, int(self.rows.sum()))


class Corruptions(msgspec.Struct):
    """What became of the changes that one fault has made."""

    changed: int = 0
    read: int = 0  # changes that a step read at least once
    detected: int = 0  # changes of which the canary noticed a read, the first or a later one
    lost: int = 0  # unread changes with a copy that equals a right page


@dataclass(eq=False)
class _Change:
    counts: Corruptions
    read: bool = False
    detected: bool = False
    lost: bool = False


@dataclass
class Aftermath:
    """Follows changes through the events; `pages_of` names the pages of a set."""

    pages_of: Callable[[int], list[int]]
    counts: dict[str, Corruptions] = field(default_factory=dict)  # fault -> its counts
    _pools: dict[Tier, KVPool] = field(default_factory=dict)
    _spots: defaultdict[Key, dict[int, tuple[Spot, _Change]]] = field(default_factory=lambda: defaultdict(dict))
    _bad: defaultdict[OpRef, list[BadRead]] = field(default_factory=lambda: defaultdict(list))

    def memory(self, pools: Mapping[Tier, KVPool]) -> None:
        """Take the pools that copies go to."""
        self._pools = dict(pools)

    def follows(self, tier: Tier, component: Component, layer: int, page: int) -> bool:
        """Return whether a page holds wrong bytes already."""
        return page in self._spots[tier, component, layer]

    def follow(self, fault: str, spots: Iterable[Spot]) -> None:
        """Follow a change that a fault has made; nothing for one that changed nothing."""
        spots = list(spots)
        if spots:
            counts = self.counts.setdefault(fault, Corruptions())
            counts.changed += 1
            self._add(spots, _Change(counts))

    def feed(self, event: Event) -> None:
        """Take the next event."""
        if isinstance(event, BadRead):
            if not event.origin:
                self._bad[event.stream, event.index].append(event)
        elif isinstance(event, PageEvent):
            if event.what != "publish":
                self._drop(event.tier, self.pages_of(event.pages))
        elif isinstance(event, Op) and event.accesses:
            bad = self._bad.pop((event.stream, event.index), [])
            if self._spots:
                self._reads(event, bad)
                self._writes(event)

    def _add(self, spots: Iterable[Spot], change: _Change) -> None:
        for spot in spots:
            self._spots[spot.key][spot.page] = spot, change

    def _drop(self, tier: Tier, pages: list[int]) -> None:
        for (held_by, _, _), spots in self._spots.items():
            if held_by == tier:
                for page in pages:
                    spots.pop(page, None)

    def _touched(self, op: Op, *, write: bool) -> list[tuple[Spot, _Change]]:
        """Return the spots among the pages that an operation read, or wrote."""
        touched = []
        for access in op.accesses:
            spots = self._spots.get((access.tier, access.component, access.layer))
            if spots and access.write is write:
                touched += [spots[page] for page in self.pages_of(access.pages) if page in spots]
        return touched

    def _reads(self, op: Op, bad: list[BadRead]) -> None:
        """Count what a step read, and follow what a copy took. What had begun before bytes changed did neither."""
        touched = [each for each in self._touched(op, write=False) if op.start_us >= each[0].at_us]
        if touched and op.name in COPIES:
            self._copied(op, touched)
        elif op.name in READS:
            for spot, change in touched:
                noticed = any(
                    (each.component, each.layer) == spot.key[1:] and spot.page in self.pages_of(each.pages)
                    for each in bad
                )
                _count_read(change, noticed)

    def _copied(self, op: Op, touched: list[tuple[Spot, _Change]]) -> None:
        """Follow spots to where a copy has put them: pages that hold the same from their first row to their last.

        Where more pages hold it than were copied from spots, some are right, and nobody can tell which.
        """
        [write] = [access for access in op.accesses if access.write]
        pool = self._pools[write.tier]
        pages = np.array(self.pages_of(write.pages), np.int32)
        held = pool.read(write.component, write.layer, pages)
        taken: set[int] = set()
        for spot, change in touched:
            twins = sum(bool(same(other.held, spot.held).all()) for other, _ in touched)
            equal = pages[same(held, spot.held).all(axis=1)].tolist()
            if len(equal) == twins:
                page = next(each for each in equal if each not in taken)
                taken.add(page)
                copied = spot._replace(pool=pool, component=write.component, layer=write.layer, page=page)
                self._add([copied._replace(at_us=op.end_us)], change)
            elif not change.read:
                _lose(change)

    def _writes(self, op: Op) -> None:
        for spot, _ in self._touched(op, write=True):
            if not spot.still_wrong:
                del self._spots[spot.key][spot.page]


def _count_read(change: _Change, noticed: bool) -> None:
    if not change.read:
        change.read = True
        change.counts.read += 1
        change.counts.lost -= change.lost
        change.lost = False
    if noticed and not change.detected:
        change.detected = True
        change.counts.detected += 1


def _lose(change: _Change) -> None:
    change.counts.lost += not change.lost
    change.lost = True
