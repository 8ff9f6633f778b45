"""Which operation came right after which other at a page: what a new schedule has to show for itself."""

from collections import defaultdict

from detectors.pages import Grid, PageSetTable, kind_of
from repro.base.probe import Access, Event, Op

NOBODY = -1


def _untouched() -> Grid:
    return Grid(NOBODY)


class Orders:
    """Collects the orders of conflicting accesses of different streams; feed it the events of a run.

    An order names the two operations, component and layer, and no page, time or worker, so that one that
    is seen again is known. It is text, so that it means the same in another process.
    """

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self._sets = PageSetTable()
        self._numbers: dict[tuple[str, str, bool], int] = {}
        self._names: list[tuple[str, str, bool]] = []  # stream, operation, whether it writes
        self._last: defaultdict[tuple[str, str], Grid] = defaultdict(_untouched)
        self._known: set[tuple[int, int, str, int]] = set()

    def feed(self, event: Event) -> None:
        """Take the next event."""
        if isinstance(event, Op):
            for access in event.accesses:
                self._follow(event, access)
        else:
            self._sets.feed(event)

    def _follow(self, op: Op, access: Access) -> None:
        name = (op.stream, op.name, access.write)
        number = self._numbers.setdefault(name, len(self._numbers))
        if number == len(self._names):
            self._names.append(name)
        pages, stop = self._sets.union((access.pages,))
        row = self._last[access.tier, access.component].row(access.layer, stop)
        for before in set(row.take(pages).tolist()):
            pair = (before, number, access.component, access.layer)
            if before not in (NOBODY, number) and pair not in self._known:
                self._known.add(pair)
                self._note(self._names[before], name, access)
        row[pages] = number

    def _note(self, before: tuple[str, str, bool], after: tuple[str, str, bool], access: Access) -> None:
        (stream, name, wrote), (next_stream, next_name, writes) = before, after
        if stream == next_stream or not (wrote or writes):
            return
        place = f"{kind_of(access.tier)} {access.component} {access.layer}"
        self.seen.add(f"{kind_of(stream)} {name} > {kind_of(next_stream)} {next_name}: {place}")
