"""Page sets and page histories, as several detectors need them."""

import re
from collections import deque
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from repro.base.probe import PAGE_SETS_VALID, Event, PageEvent, PageSet

Pages = NDArray[np.int64]
HISTORY_EVENTS_MAX = 12  # events that one page's history names
HISTORY_CHANGES_KEPT = 16_384  # changes that a tier remembers
UNIONS_KEPT = 1024

_NUMBERS = re.compile(r"\d+")


def kind_of(name: str) -> str:
    """Return a stream's or tier's name without the numbers of its worker and lane: P0.transfer1 is a P.transfer.

    Findings of one cause have one signature, whichever worker met it.
    """
    return _NUMBERS.sub("", name) if "." in name else name


class Union(NamedTuple):
    """Pages of several sets; one that is in two of them is there twice."""

    pages: Pages
    stop: int  # above the highest page


EMPTY = Union(np.empty(0, np.int64), 0)


class Sample(NamedTuple):
    """Which pages are watched: of each run of `every` neighbours one, so that a long prefix always has some."""

    every: int = 1
    first: int = 0

    def of(self, pages: Pages) -> Pages:
        """Return the watched ones among these pages, in their order."""
        return pages if self.every == 1 else pages[pages % self.every == self.first % self.every]


ALL = Sample()


class PageSetTable:
    """The page sets named so far, as long as anybody may still refer to them; of each what is in the sample."""

    def __init__(self, sample: Sample = ALL) -> None:
        self._sample = sample
        self._sets: dict[int, Union] = {}
        self._unions: dict[tuple[int, ...], Union] = {}

    def feed(self, event: Event) -> None:
        """Take a `PageSet`; other events are ignored."""
        if isinstance(event, PageSet):
            self._sets[event.id] = self._sampled(_pages_of(event.ranges))
            self._sets.pop(event.id - PAGE_SETS_VALID, None)

    def __getitem__(self, number: int) -> Pages:
        return self._sets[number].pages

    def union(self, numbers: tuple[int, ...]) -> Union:
        """Return the pages of several sets; a step asks for the same sets once a layer."""
        if len(numbers) == 1:
            return self._sets[numbers[0]]
        union = self._unions.get(numbers)
        if union is None:
            if len(self._unions) >= UNIONS_KEPT:
                self._unions.clear()
            sets = [self._sets[number] for number in numbers]
            pages = np.concatenate([each.pages for each in sets])
            union = self._unions[numbers] = Union(pages, max(each.stop for each in sets))
        return union

    def _sampled(self, union: Union) -> Union:
        if self._sample.every == 1:
            return union
        pages = self._sample.of(union.pages)
        return Union(pages, int(pages.max()) + 1) if len(pages) else EMPTY

    def __len__(self) -> int:
        return len(self._sets)


def _pages_of(ranges: tuple[int, ...]) -> Union:
    """Return the pages of flat half-open ranges."""
    if len(ranges) <= 2:
        return Union(np.arange(*ranges), ranges[1]) if ranges else EMPTY
    bounds = np.array(ranges).reshape(-1, 2)
    lengths = bounds[:, 1] - bounds[:, 0]
    ends = lengths.cumsum()
    # Counting goes on through all ranges; each is shifted to where it starts.
    pages = np.arange(ends[-1]) + np.repeat(bounds[:, 0] - (ends - lengths), lengths)
    return Union(pages, int(bounds[:, 1].max()))


class PageHistory:
    """The last changes of owner of each page, put into words when a finding asks for them."""

    def __init__(self, table: PageSetTable) -> None:
        self._table = table
        self._changes: dict[str, deque[tuple[PageEvent, Pages]]] = {}  # tier -> its last changes

    def feed(self, event: Event) -> None:
        """Take a `PageEvent`; other events are ignored."""
        if isinstance(event, PageEvent):
            changes = self._changes.setdefault(event.tier, deque(maxlen=HISTORY_CHANGES_KEPT))
            changes.append((event, self._table[event.pages]))

    def lines(self, tier: str, page: int) -> tuple[str, ...]:
        """Return the page's last changes, oldest first."""
        changes = reversed(self._changes.get(tier, ()))
        of_page = islice((event for event, pages in changes if page in pages), HISTORY_EVENTS_MAX)
        return tuple(f"{event.at_us:.1f} us: {event.what} ({event.owner})" for event in of_page)[::-1]


class Grid:
    """An int64 array over (layer, page) that grows with what it is asked for."""

    def __init__(self, fill: int) -> None:
        self._fill = fill
        self._cells = np.full((1, 64), fill, np.int64)

    def row(self, layer: int, stop: int) -> Pages:
        """Return the row of a layer, a view that covers the pages below `stop`; valid until the next call."""
        layers, width = self._cells.shape
        if layer >= layers or stop > width:
            grown = np.full((max(layers, layer + 1), width if stop <= width else 2 * stop), self._fill, np.int64)
            grown[:layers, :width] = self._cells
            self._cells = grown
        row: Pages = self._cells[layer]
        return row
