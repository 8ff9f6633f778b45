"""Finds two conflicting accesses to a page that nothing orders (layer 1 of the truth).

feed ─> happens_before (a clock for each operation) ─> epochs (who touched each page last) ─> PagePair ─> verdict

For each page, layer and component, `epochs` holds the last writer and, per stream, the last reader (FastTrack). An
access races with an epoch that its vector clock does not cover. A missing wait is missing in every schedule, so the
detector convicts also where the bytes happened to be right.

Operations of one stream wait until another stream touches a page, and are then compared in one batch: their own
stream orders them, so none of them races with another. A batch that holds a race is compared again one by one.

A sample narrows the watched pages, not what is known of them: clocks cover all operations, and no page's epochs
depend on another page. A finding is as certain as without a sample; a race on other pages alone is missed.
"""

from collections import defaultdict, deque
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple, get_args

import numpy as np

from detectors.base import Answer, Causes, DetectorVerdict, Finding, Marks
from detectors.evidence import Operation, PagePair
from detectors.pages.epochs import Epochs, Flags, Numbers, Touches, covered_by
from detectors.pages.happens_before import ACTORS_MAX, Clock, HappensBefore
from detectors.pages.sets import ALL, PageHistory, Pages, PageSetTable, Sample, kind_of
from repro.base.probe import Access, Component, Event, Op, OpRef, PageEvent, Tier

EXAMPLES_MAX = 5  # findings of one signature that keep their evidence
OPERATIONS_KEPT = 4096  # finished operations that a finding may still name in full
OPERATIONS_AT_ONCE_MAX = 256

METADATA: tuple[Component, ...] = ("slot", "row")  # these few are no pages: a sample watches all of them
COMPONENTS: tuple[Component, ...] = get_args(Component)

_KIND_AND_PLACE = attrgetter("write", "tier", "component", "layer")
_PAGES = attrgetter("pages")
_VERBS = {True: "writes", False: "reads"}  # the key says whether an access writes
_NOUNS = {True: "write", False: "read"}


class _Touch(NamedTuple):
    """The reads, or the writes, of an operation in one layer of one tier and component."""

    op: Op
    write: bool
    tier: Tier
    component: Component
    layer: int
    accesses: list[Access]
    pages: Pages
    stop: int  # above the highest page


class _Other(NamedTuple):
    """The operation of a race that was fed earlier; `op` is None when it is too old to be remembered."""

    ref: OpRef
    write: bool
    op: Op | None

    @property
    def name(self) -> str:
        return self.op.name if self.op else f"operation {self.ref[1]}"


class OrderingDetector:
    """Feed it the event stream; see `detectors.base.EventDetector`."""

    name = "ordering"

    def __init__(self, sample: Sample = ALL) -> None:
        self._clocks = HappensBefore()
        self._why_nothing = (
            "no page access was recorded: the target does not tell them"
            if sample.every == 1
            else f"no access to a page of the sample, 1 in {sample.every}, was recorded"
        )
        self._all_pages = PageSetTable()
        self._watched = self._all_pages if sample.every == 1 else PageSetTable(sample)
        self._sets = {name: self._all_pages if name in METADATA else self._watched for name in COMPONENTS}
        self._history = PageHistory(self._all_pages)
        self._epochs: defaultdict[Tier, Epochs] = defaultdict(Epochs)
        self._operations: dict[OpRef, Op] = {}
        self._remembered: deque[OpRef] = deque()
        self._causes = Causes(EXAMPLES_MAX)
        self._raced: dict[str, str] = {}  # request -> the signature of its first race
        self._checked = 0  # accesses to pages
        # The batch: operations of one stream that have not been compared yet, each with the number of its clock in
        # `_batch_clocks`, and all that they touched, by tier, reads and writes apart.
        self._batch: list[tuple[Op, int]] = []
        self._batch_clocks: list[Clock] = []
        self._batch_touches: defaultdict[tuple[Tier, bool], Touches] = defaultdict(Touches)

    def feed(self, event: Event) -> None:
        """Take the next event."""
        clock = self._clocks.feed(event)
        if clock is None or not isinstance(event, Op):
            if isinstance(event, PageEvent):
                self._compare_batch()  # a finding's history ends before the next change of owner
            self._all_pages.feed(event)
            if self._watched is not self._all_pages:
                self._watched.feed(event)
            self._history.feed(event)
        elif event.accesses:
            self._add_to_batch(event, clock)

    @property
    def raced(self) -> dict[str, str]:
        """Return the signature of each request's first race."""
        self._compare_batch()
        return self._raced

    def verdict(self) -> DetectorVerdict:
        """Return the answer about all events fed so far."""
        self._compare_batch()
        findings = self._causes.findings()
        answer: Answer = "anomaly" if findings else ("clean" if self._checked else "not_applicable")
        why = "" if self._checked else self._why_nothing
        return DetectorVerdict(self.name, answer, findings, why, self._checked, Marks(raced=frozenset(self._raced)))

    def _add_to_batch(self, op: Op, clock: Clock) -> None:
        """Add an operation to the batch; one of another stream begins the next batch."""
        if self._batch and self._batch[-1][0].stream != op.stream:
            self._compare_batch()
        if not self._batch:
            self._batch_clocks = [clock]
        elif clock is not self._batch_clocks[-1]:
            self._batch_clocks.append(clock)
        number, watched = len(self._batch_clocks) - 1, False
        for (write, tier, component, layer), accesses in groupby(op.accesses, _KIND_AND_PLACE):
            assert layer >= 0, f"{op.name} of stream {op.stream} touches pages of no layer"
            pages, stop = self._sets[component].union(tuple(map(_PAGES, accesses)))
            if len(pages):
                self._checked += len(pages)
                row = self._epochs[tier].row(component, layer, stop)
                self._batch_touches[tier, write].add(row, op.index, number, pages)
                watched = True
        if watched:
            self._batch.append((op, number))
            if len(self._batch) == OPERATIONS_AT_ONCE_MAX:
                self._compare_batch()

    def _compare_batch(self) -> None:
        """Compare the batch with whoever touched its pages last, and empty it."""
        if not self._batch:
            return
        actor, covered = self._clocks.actor(self._batch[0][0].stream), covered_by(self._batch_clocks)
        groups = [(self._epochs[tier], touches, write) for (tier, write), touches in self._batch_touches.items()]
        if any(epochs.are_unordered(touches, write, covered) for epochs, touches, write in groups):
            self._compare_one_by_one(actor, covered)
        else:
            for op, _ in self._batch:
                self._remember(op)
            for epochs, touches, write in groups:
                epochs.advance(touches, write, actor)
        self._batch.clear()
        self._batch_touches.clear()

    def _compare_one_by_one(self, actor: int, covered: Numbers) -> None:
        """Compare the operations of a batch one by one, and convict those that race."""
        for op, number in self._batch:
            self._remember(op)
            for touch in self._touches_of(op):
                epochs, touches = self._epochs[touch.tier], Touches()
                touches.add(epochs.row(touch.component, touch.layer, touch.stop), op.index, number, touch.pages)
                for unordered, last, last_wrote in epochs.unordered(touches, touch.write, covered):
                    self._convict(touch, unordered, last, last_wrote)
                epochs.advance(touches, touch.write, actor)

    def _touches_of(self, op: Op) -> list[_Touch]:
        """Return what the operation touched: one entry for its reads, or writes, in each tier, component and layer."""
        groups: dict[tuple[bool, Tier, Component, int], list[Access]] = {}
        for key, accesses in groupby(op.accesses, _KIND_AND_PLACE):
            groups.setdefault(key, []).extend(accesses)
        touches = []
        for key, of_place in groups.items():
            union = self._sets[key[2]].union(tuple(map(_PAGES, of_place)))
            if len(union.pages):
                touches.append(_Touch(op, *key, of_place, union.pages, union.stop))
        return touches

    def _remember(self, op: Op) -> None:
        """Keep an operation for findings that name it; the oldest one is forgotten."""
        ref = (op.stream, op.index)
        self._operations[ref] = op
        self._remembered.append(ref)
        if len(self._remembered) > OPERATIONS_KEPT:
            del self._operations[self._remembered.popleft()]

    def _convict(self, touch: _Touch, unordered: Flags, last: Numbers, last_wrote: bool) -> None:
        """Add one finding; the pair that it names is the one of the lowest page.

        `last` has the epoch of each touched page, (pages,), and `unordered` says which of them are part of the race.
        """
        raced = touch.pages[unordered]
        others = [self._other(epoch, last_wrote) for epoch in np.unique(last[unordered]).tolist()]
        other = self._other(int(last[unordered][raced.argmin()]), last_wrote)
        pages = np.unique(raced)
        signature = _signature(other, touch)
        requests = self._requests(touch, others, pages)
        for request in requests:
            self._raced.setdefault(request, signature)
        finding = partial(self._finding, signature, touch, other, pages, requests)
        if not self._causes.add(signature, finding) and _is_inverted(touch, other):
            examples = self._causes.examples(signature)
            if not any(isinstance(each.evidence, PagePair) and each.evidence.inverted for each in examples):
                examples[-1] = finding()  # one example shows the operations out of order

    def _other(self, epoch: int, wrote: bool) -> _Other:
        """Return the operation that an epoch names."""
        index, actor = divmod(epoch, ACTORS_MAX)
        ref = (list(self._clocks.actors)[actor], index)
        return _Other(ref, wrote, self._operations.get(ref))

    def _requests(self, touch: _Touch, others: list[_Other], pages: Pages) -> list[str]:
        """Return for whom the raced pages were touched, by this operation or read by the earlier ones."""
        place = (touch.tier, touch.component, touch.layer)
        accesses = list(touch.accesses)
        for other in others:
            if other.op is not None and not other.write:
                reads = [access for access in other.op.accesses if not access.write]
                accesses += [each for each in reads if (each.tier, each.component, each.layer) == place]
        hit = [each.request for each in accesses if np.isin(self._all_pages[each.pages], pages).any()]
        return sorted({request for request in hit if request})

    def _finding(self, signature: str, touch: _Touch, other: _Other, pages: Pages, requests: list[str]) -> Finding:
        op, page = touch.op, int(pages[0])
        claim = (
            f"{other.name} on stream {other.ref[0]} {_VERBS[other.write]} and {op.name} on stream {op.stream} "
            f"{_VERBS[touch.write]} the {touch.component} rows of page {page}, layer {touch.layer}; "
            "nothing orders them"
        )
        evidence = PagePair(
            first=_described(other.op, other.ref, other.write),
            second=_described(op, (op.stream, op.index), touch.write),
            page=page,
            pages=len(pages),
            tier=touch.tier,
            component=touch.component,
            layer=touch.layer,
            missing_edge=_missing_edge(touch, other),
            inverted=_is_inverted(touch, other),
            requests=tuple(requests),
            history=self._history.lines(touch.tier, page),
        )
        request = requests[0] if requests else ""
        return Finding(self.name, "ordering", claim, signature, request, op.start_us, 1, evidence)


def _signature(other: _Other, touch: _Touch) -> str:
    """Return the cause: both operations and streams without numbers, in the same order whichever came first."""
    op = touch.op
    earlier = other.op.name if other.op else kind_of(other.ref[0])
    ends = sorted([f"{earlier} {_NOUNS[other.write]}", f"{op.name} {_NOUNS[touch.write]}"], reverse=True)
    streams = " and ".join(sorted((kind_of(other.ref[0]), kind_of(op.stream))))
    return f"ordering: {ends[0]} x {ends[1]} of {kind_of(touch.tier)} {touch.component}, no edge between {streams}"


def _missing_edge(touch: _Touch, other: _Other) -> str:
    """Return what would have kept the order in which the two were enqueued."""
    op, first = touch.op, other.op
    ends = [(other.ref[0], other.name), (op.stream, op.name)]
    if first is not None and _enqueued_first(op, first):
        ends.reverse()
    (source, earlier), (waiting, later) = ends
    if first is not None and first.by != op.by:
        waiter = op.by if waiting == op.stream else first.by
        return (
            f"no message told host {waiter}, before it enqueued {later} (layer {touch.layer}), that {earlier} "
            f"of {source} had completed"
        )
    return f"{waiting} waits for no event that {source} records behind {earlier} (layer {touch.layer}) before {later}"


def _is_inverted(touch: _Touch, other: _Other) -> bool:
    """Return whether the one enqueued later began before the other had ended: then the bytes are wrong."""
    if other.op is None:
        return False
    ends = (touch.op, other.op) if _enqueued_first(touch.op, other.op) else (other.op, touch.op)
    return ends[1].start_us < ends[0].end_us


def _enqueued_first(one: Op, other: Op) -> bool:
    """Return whether `one` was enqueued before `other`; the clocks of two hosts can't be compared."""
    if one.by == other.by:
        return (one.host, one.enqueued_us) < (other.host, other.enqueued_us)
    return one.enqueued_us < other.enqueued_us


def _described(op: Op | None, ref: OpRef, write: bool) -> Operation:
    """Return an operation as evidence names it."""
    if op is None:
        return Operation(*ref, write=write)
    times = (op.enqueued_us, op.start_us, op.end_us)
    return Operation(*ref, op.name, op.layer, op.step, op.site, *times, write)
