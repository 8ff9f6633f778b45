"""Who touched each page of a tier last, as numbers that one gather fetches and one comparison judges."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from detectors.pages.happens_before import ACTORS_MAX, Clock
from detectors.pages.sets import Pages
from repro.base.probe import Component

# An epoch (FastTrack) is one number, operation x ACTORS_MAX + actor, so that `& (ACTORS_MAX - 1)` is its actor. NOBODY
# reads as the last actor's; no number in `covered_by` is below it, so that nobody never races.
NOBODY = -1
Flags = NDArray[np.bool_]
Numbers = NDArray[np.int64]
_ACTORS = np.arange(ACTORS_MAX)
_WRITTEN = 0  # the writers' table; those of the readers follow


def covered_by(clocks: Sequence[Clock]) -> Numbers:
    """Return the latest epoch of each actor that each clock covers, (clocks x actors,), NOBODY at least."""
    covered: Numbers = np.maximum(np.array(clocks) * ACTORS_MAX + _ACTORS, NOBODY)
    return covered.ravel()


class Touches:
    """The pages that operations of one actor have read, or written, one after another, in one tier."""

    def __init__(self) -> None:
        self._rows: list[int] = []
        self._indices: list[int] = []  # indices of the operations
        self._clocks: list[int] = []  # numbers of the operations' clocks, ascending
        self._pages: list[Pages] = []
        self._cells: tuple[int, Numbers] | None = None  # (width, cells): a comparison and an advance ask for the same

    def add(self, row: int, index: int, clock: int, pages: Pages) -> None:
        """Add pages of one row of the tables, touched by operation `index` with clock number `clock`."""
        self._rows.append(row)
        self._indices.append(index)
        self._clocks.append(clock)
        self._pages.append(pages)

    def cells(self, width: int) -> Numbers:
        """Return where the pages are in a flat table with rows of `width`, (pages,); after it, `add` is an error."""
        if self._cells is None or self._cells[0] != width:
            cells: Numbers = np.concatenate(self._pages)
            cells += self._rows[0] * width if len(self._rows) == 1 else self._each(np.array(self._rows) * width)
            self._cells = width, cells
        return self._cells[1]

    def clocks(self) -> Numbers | int:
        """Return where the clock of each page begins in `covered_by`, (pages,), or one number that holds for all."""
        if self._clocks[0] == self._clocks[-1]:
            return self._clocks[0] * ACTORS_MAX
        return self._each(np.array(self._clocks) * ACTORS_MAX)

    def epochs(self, actor: int) -> Numbers | int:
        """Return the epoch of each page, (pages,), or one number that holds for all."""
        if len(self._indices) == 1:
            return self._indices[0] * ACTORS_MAX + actor
        return self._each(np.array(self._indices) * ACTORS_MAX + actor)

    def _each(self, of_touches: Numbers) -> Numbers:
        """Return a number for each page, (pages,), from one for each `add`."""
        return of_touches.repeat(list(map(len, self._pages)))


class Epochs:
    """The last writer and, for each actor, the last reader of each page of a tier, by component and layer."""

    def __init__(self) -> None:
        self._tables = np.full((1, 1, 64), NOBODY, np.int64)  # (who, row, page)
        self._rows: dict[tuple[Component, int], int] = {}  # (component, layer) -> its row
        self._readers: dict[int, int] = {}  # actor -> its table

    def row(self, component: Component, layer: int, stop: int) -> int:
        """Return the row of a component's layer, with room for the pages below `stop`."""
        row = self._rows.get((component, layer))
        if row is None:
            row = self._rows[component, layer] = len(self._rows)
        self._grow_to(0, row, stop)
        return row

    def unordered(self, touches: Touches, write: bool, covered: Numbers) -> Iterator[tuple[Flags, Numbers, bool]]:
        """Yield the races of these accesses: (which of their pages, (pages,); the last epoch of each; did those write).

        First come races with the last writers, then, for a write, those with the last reads of each actor.
        """
        cells, clocks = touches.cells(self._tables.shape[2]), touches.clocks()
        written = self._tables[_WRITTEN].take(cells)
        unordered = written > covered.take((written & (ACTORS_MAX - 1)) + clocks)
        if np.count_nonzero(unordered):
            yield unordered, written, True
        for actor, table in self._readers.items() if write else ():
            read = self._tables[table].take(cells)
            unordered = read > covered.take(clocks + actor)
            if np.count_nonzero(unordered):
                yield unordered, read, False

    def are_unordered(self, touches: Touches, write: bool, covered: Numbers) -> bool:
        """Return whether these accesses race with anything."""
        return next(self.unordered(touches, write, covered), None) is not None

    def advance(self, touches: Touches, write: bool, actor: int) -> None:
        """Note that `actor` touched these pages last; of two operations at one page the later one counts."""
        table = _WRITTEN if write else self._readers.setdefault(actor, len(self._readers) + 1)
        self._grow_to(table, 0, 0)
        flat = self._tables[table].reshape(-1)
        flat[touches.cells(self._tables.shape[2])] = touches.epochs(actor)

    def _grow_to(self, table: int, row: int, stop: int) -> None:
        """Grow until there is a table `table`, with a row `row` and the pages below `stop`."""
        tables, rows, width = self._tables.shape
        if table < tables and row < rows and stop <= width:
            return
        shape = max(tables, table + 1), rows if row < rows else 2 * row, width if stop <= width else 2 * stop
        grown = np.full(shape, NOBODY, np.int64)
        grown[:tables, :rows, :width] = self._tables
        self._tables = grown
