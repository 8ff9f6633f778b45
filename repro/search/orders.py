"""Which operation came right after which other at a page: a schedule is new if it brings an order that is new."""

from collections import Counter, defaultdict
from typing import NamedTuple

from detectors.pages.sets import Grid, PageSetTable, kind_of
from repro.base.probe import Access, Event, Op

NOBODY = -1


class _Accessor(NamedTuple):
    """One side of an order: who accessed a page."""

    stream: str
    operation: str
    writes: bool


class _Last(NamedTuple):
    """The last access to a page."""

    accessor: _Accessor
    enqueued_us: float
    end_us: float


class Orders:
    """Collects the orders of conflicting accesses of different streams; feed it the events of a run.

    An order names the two operations, component and layer, whether they came as they were enqueued, and whether they
    overlapped. It names no page, time or worker, so that an order is recognised in another run. It is text, so that it
    means the same in another process.
    """

    def __init__(self) -> None:
        self.seen: set[str] = set()  # the orders, as text
        self._met: set[str] = set()  # operations that an order names
        self._times: Counter[str] = Counter()  # how often each operation ran
        self._sets = PageSetTable()
        self._accesses: list[_Last] = []
        # (tier, component) -> place in `_accesses` of each page's last access
        self._last: defaultdict[tuple[str, str], Grid] = defaultdict(lambda: Grid(NOBODY))
        self._known: set[tuple[object, ...]] = set()  # orders that are in `seen`: text takes longer to make

    def feed(self, event: Event) -> None:
        """Take the next event."""
        if isinstance(event, Op):
            self._times[event.name] += 1
            for access in event.accesses:
                self._follow(event, access)
        else:
            self._sets.feed(event)

    @property
    def operations(self) -> tuple[str, ...]:
        """Return the operations that came in some order, the rarest first."""
        return tuple(sorted(self._met, key=lambda name: (self._times[name], name)))

    def _follow(self, op: Op, access: Access) -> None:
        """Note the orders that an access makes with the last ones at its pages, and become their last one."""
        accessor = _Accessor(op.stream, op.name, access.write)
        pages, stop = self._sets.union((access.pages,))
        row = self._last[access.tier, access.component].row(access.layer, stop)
        for before in set(row.take(pages).tolist()):
            if before == NOBODY:
                continue
            last = self._accesses[before]
            if last.accessor.stream != op.stream and (last.accessor.writes or access.write):
                relation = (op.enqueued_us < last.enqueued_us, op.start_us < last.end_us)
                self._note((last.accessor, accessor, relation, access.tier, access.component, access.layer))
        row[pages] = len(self._accesses)
        self._accesses.append(_Last(accessor, op.enqueued_us, op.end_us))

    def _note(self, order: tuple[_Accessor, _Accessor, tuple[bool, bool], str, str, int]) -> None:
        """Add an order, as text, where it is new."""
        if order in self._known:
            return
        self._known.add(order)
        before, after, (inverted, overlapping), tier, component, layer = order
        how = ("inverted " if inverted else "") + ("beside" if overlapping else "after")
        what = f"{kind_of(after.stream)} {after.operation} {how} {kind_of(before.stream)} {before.operation}"
        self._met |= {before.operation, after.operation}
        self.seen.add(f"{what}: {kind_of(tier)} {component} {layer}")
