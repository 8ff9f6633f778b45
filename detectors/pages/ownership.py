"""Pages with two owners, and accesses by somebody who owns none: after the free, or of a stale generation.

An operation belongs to the owner that the page had when the host enqueued it; a remote write, to the one
that the page had when its own host offered it. It may still run after the page went to somebody else, as
long as the new owner has not touched the page yet (a step that rode along for a request that had just
ended does). Running after the new owner is a violation.
"""

from collections import defaultdict
from collections.abc import Sequence
from operator import attrgetter

import numpy as np

from detectors.base import Answer, Causes, DetectorVerdict, Finding
from detectors.evidence import PageChange, PageUse
from detectors.pages.sets import Grid, PageHistory, Pages, PageSetTable, kind_of
from repro.base.probe import Access, Event, Op, PageEvent

NEVER = -1
PASSED_KEPT = 4096  # page sets that a tier's owners remember to have passed

_PAGES = attrgetter("pages")


class _Owners:
    """Host clocks of one tier, by page."""

    def __init__(self) -> None:
        self.allocated = Grid(NEVER)
        self.freed = Grid(NEVER)
        self.touched = Grid(NEVER)  # the `allocated` of the youngest generation that was accessed
        # The lowest clock at which these sets passed: they pass at every later one, until an owner changes.
        self.passed: dict[tuple[int, ...], int] = {}


class OwnershipDetector:
    """Feed it the event stream; see `detectors.base.EventDetector`."""

    name = "ownership"

    def __init__(self) -> None:
        self._sets = PageSetTable()
        self._history = PageHistory(self._sets)
        self._owners: defaultdict[str, _Owners] = defaultdict(_Owners)
        self._causes = Causes(examples_max=1)
        self._checked = 0

    def feed(self, event: Event) -> None:
        """Take the next event."""
        if isinstance(event, Op):
            tiers = {access.tier for access in event.accesses}
            if len(tiers) == 1:
                self._check(event, tiers.pop(), event.accesses)
                return
            for tier in sorted(tiers):
                self._check(event, tier, [access for access in event.accesses if access.tier == tier])
            return
        self._sets.feed(event)
        self._history.feed(event)
        if isinstance(event, PageEvent) and event.what != "publish":
            self._change(event)

    def verdict(self) -> DetectorVerdict:
        """Return the answer about all events fed so far."""
        found = self._causes.findings()
        answer: Answer = "anomaly" if found else ("clean" if self._checked else "not_applicable")
        why = "" if self._checked else "no page access was recorded: the target does not tell them"
        return DetectorVerdict(self.name, answer, found, why, self._checked)

    def _change(self, event: PageEvent) -> None:
        owners = self._owners[event.tier]
        owners.passed.clear()
        pages, stop = self._sets.union((event.pages,))
        allocated, freed = owners.allocated.row(0, stop), owners.freed.row(0, stop)
        owned = allocated.take(pages) > freed.take(pages)
        if event.what == "alloc":
            wrong, what = pages[owned], "is handed out while somebody owns it"
            allocated[pages] = event.host
        else:
            wrong, what = pages[~owned & (freed.take(pages) != NEVER)], "is freed twice"
            freed[pages] = event.host
        if len(wrong):
            self._convict_change(event, wrong, what)

    def _convict_change(self, event: PageEvent, pages: Pages, what: str) -> None:
        page, tier = int(pages[0]), event.tier
        signature = f"ownership: a {kind_of(tier)} page {what}"
        claim = f"{tier} page {page} {what}" + (f", for {event.owner}" if event.owner else "")

        def finding() -> Finding:
            evidence = PageChange(page, len(pages), tier, self._history.lines(tier, page))
            return Finding(self.name, "ordering", claim, signature, "", event.at_us, 1, evidence)

        self._causes.add(signature, finding)

    def _check(self, op: Op, tier: str, accesses: Sequence[Access]) -> None:
        owners = self._owners[tier]
        numbers, clock = tuple(map(_PAGES, accesses)), accesses[0].granted or op.host
        pages, stop = self._sets.union(numbers)
        self._checked += len(pages)
        if owners.passed.get(numbers, clock + 1) <= clock:
            return
        allocated = owners.allocated.row(0, stop).take(pages)
        freed = owners.freed.row(0, stop).take(pages)
        touched = owners.touched.row(0, stop)
        current = clock >= allocated
        if np.count_nonzero(current) == len(pages) and not np.count_nonzero(freed > allocated):
            touched[pages] = allocated
            if len(owners.passed) >= PASSED_KEPT:
                owners.passed.clear()
            owners.passed[numbers] = clock
            return
        # Enqueued after the last free, and not by whoever was given the page afterwards.
        after_free = (freed != NEVER) & (clock >= freed) & ((freed > allocated) | ~current)
        stale = ~current & ~after_free & (touched.take(pages) == allocated)
        touched[pages[current]] = allocated[current]
        for wrong, what in ((after_free, "after it was freed"), (stale, "of a newer owner")):
            if wrong.any():
                self._convict_each(op, tier, accesses, pages[wrong], what)

    def _convict_each(self, op: Op, tier: str, accesses: Sequence[Access], wrong: Pages, what: str) -> None:
        for access in accesses:
            pages = np.intersect1d(self._sets[access.pages], wrong)
            if len(pages):
                self._convict(op, tier, access, pages, what)

    def _convict(self, op: Op, tier: str, access: Access, pages: Pages, what: str) -> None:
        page, verb = int(pages[0]), "writes" if access.write else "reads"
        signature = f"ownership: {op.name} {verb} a {kind_of(tier)} page {what}"
        layer = f", layer {op.layer}," if op.layer >= 0 else ""
        claim = f"{op.name} on stream {op.stream}{layer} {verb} {tier} page {page} {what}"

        def finding() -> Finding:
            history = self._history.lines(tier, page)
            evidence = PageUse(op.stream, op.index, op.name, page, len(pages), tier, op.site, access.request, history)
            return Finding(self.name, "ordering", claim, signature, access.request, op.start_us, 1, evidence)

        self._causes.add(signature, finding)
