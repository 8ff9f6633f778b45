"""Two conflicting accesses to a page that nothing orders (layer 1 of the truth).

For each page, layer and component the last writer and, per stream, the last reader are kept as
epochs (FastTrack). An access conflicts with an epoch that its vector clock does not cover. A missing
wait is missing in every schedule, so this convicts also where the bytes happened to be right.

Operations of one stream, between which no other stream touches a page, are compared at once: their own stream orders
them, so none can race with the other. What is not silent is then gone through one by one.

With a sample only its pages are watched, and of them everything: clocks know all operations, and no page's epochs
depend on another's. So what is found is as true as without, and what races on other pages alone is missed.
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

METADATA: tuple[Component, ...] = ("slot", "row")  # no pages, and few: always watched
COMPONENTS: tuple[Component, ...] = get_args(Component)

_PLACE = attrgetter("write", "tier", "component", "layer")
_PAGES = attrgetter("pages")
_VERBS = {True: "writes", False: "reads"}
_KINDS = {True: "write", False: "read"}


class _Touch(NamedTuple):
    """What an operation did to one layer of one tier and component."""

    op: Op
    write: bool
    tier: Tier
    component: Component
    layer: int
    accesses: list[Access]
    pages: Pages
    stop: int


class _Other(NamedTuple):
    """The earlier operation of a race; `op` is None when it is long gone."""

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
        self._order = HappensBefore()
        self._why_nothing = (
            "no page access was recorded: the target does not tell them"
            if sample.every == 1
            else f"no access to a page of the sample, 1 in {sample.every}, was recorded"
        )
        self._all = PageSetTable()
        self._sampled = self._all if sample.every == 1 else PageSetTable(sample)
        self._sets = {component: self._all if component in METADATA else self._sampled for component in COMPONENTS}
        self._history = PageHistory(self._all)
        self._epochs: defaultdict[Tier, Epochs] = defaultdict(Epochs)
        self._operations: dict[OpRef, Op] = {}
        self._remembered: deque[OpRef] = deque()
        self._causes = Causes(EXAMPLES_MAX)
        self._raced: dict[str, str] = {}
        self._checked = 0
        self._pending: list[tuple[Op, int]] = []  # one stream's, not compared yet, with clock numbers
        self._clocks: list[Clock] = []  # theirs
        self._touches: defaultdict[tuple[Tier, bool], Touches] = defaultdict(Touches)  # theirs, writes apart

    def feed(self, event: Event) -> None:
        """Take the next event."""
        clock = self._order.feed(event)
        if clock is None or not isinstance(event, Op):
            if isinstance(event, PageEvent):
                self._settle()  # a finding tells what had become of its page until then
            self._all.feed(event)
            if self._sampled is not self._all:
                self._sampled.feed(event)
            self._history.feed(event)
        elif event.accesses:
            self._touch(event, clock)

    @property
    def raced(self) -> dict[str, str]:
        """Return the signature of each request's first race."""
        self._settle()
        return self._raced

    def verdict(self) -> DetectorVerdict:
        """Return the answer about all events fed so far."""
        self._settle()
        findings = self._causes.findings()
        answer: Answer = "anomaly" if findings else ("clean" if self._checked else "not_applicable")
        why = "" if self._checked else self._why_nothing
        return DetectorVerdict(self.name, answer, findings, why, self._checked, Marks(raced=frozenset(self._raced)))

    def _touch(self, op: Op, clock: Clock) -> None:
        """Have an operation's accesses compared, at once with others of its stream."""
        if self._pending and self._pending[-1][0].stream != op.stream:
            self._settle()
        if not self._pending:
            self._clocks = [clock]
        elif clock is not self._clocks[-1]:
            self._clocks.append(clock)
        number, watched = len(self._clocks) - 1, False
        for (write, tier, component, layer), accesses in groupby(op.accesses, _PLACE):
            assert layer >= 0, f"{op.name} of stream {op.stream} touches pages of no layer"
            pages, stop = self._sets[component].union(tuple(map(_PAGES, accesses)))
            if len(pages):
                self._checked += len(pages)
                row = self._epochs[tier].row(component, layer, stop)
                self._touches[tier, write].add(row, op.index, number, pages)
                watched = True
        if watched:
            self._pending.append((op, number))
            if len(self._pending) == OPERATIONS_AT_ONCE_MAX:
                self._settle()

    def _settle(self) -> None:
        """Compare what is pending with whoever touched those pages last."""
        if not self._pending:
            return
        actor, covered = self._order.actor(self._pending[0][0].stream), covered_by(self._clocks)
        groups = [(self._epochs[tier], touches, write) for (tier, write), touches in self._touches.items()]
        if any(epochs.are_unordered(touches, write, covered) for epochs, touches, write in groups):
            self._go_through(actor, covered)
        else:
            for op, _ in self._pending:
                self._remember(op)
            for epochs, touches, write in groups:
                epochs.advance(touches, write, actor)
        self._pending.clear()
        self._touches.clear()

    def _go_through(self, actor: int, covered: Numbers) -> None:
        """Compare the pending operations one by one, and convict those that race."""
        for op, number in self._pending:
            self._remember(op)
            for touch in self._touches_of(op):
                epochs, alone = self._epochs[touch.tier], Touches()
                alone.add(epochs.row(touch.component, touch.layer, touch.stop), op.index, number, touch.pages)
                for unordered, others, wrote in epochs.unordered(alone, touch.write, covered):
                    self._convict(touch, unordered, others, wrote)
                epochs.advance(alone, touch.write, actor)

    def _touches_of(self, op: Op) -> list[_Touch]:
        """Return what the operation did, reads and writes and each layer and component apart."""
        groups: dict[tuple[bool, Tier, Component, int], list[Access]] = {}
        for key, accesses in groupby(op.accesses, _PLACE):
            groups.setdefault(key, []).extend(accesses)
        touches = []
        for key, of_place in groups.items():
            union = self._sets[key[2]].union(tuple(map(_PAGES, of_place)))
            if len(union.pages):
                touches.append(_Touch(op, *key, of_place, union.pages, union.stop))
        return touches

    def _remember(self, op: Op) -> None:
        ref = (op.stream, op.index)
        self._operations[ref] = op
        self._remembered.append(ref)
        if len(self._remembered) > OPERATIONS_KEPT:
            del self._operations[self._remembered.popleft()]

    def _convict(self, touch: _Touch, unordered: Flags, epochs: Numbers, other_wrote: bool) -> None:
        """Add one finding; the pair that it names is the one of the lowest page."""
        raced = touch.pages[unordered]
        others = [self._other(epoch, other_wrote) for epoch in np.unique(epochs[unordered]).tolist()]
        other = self._other(int(epochs[unordered][raced.argmin()]), other_wrote)
        pages = np.unique(raced)
        signature = _signature(other, touch)
        requests = self._requests(touch, others, pages)
        for request in requests:
            self._raced.setdefault(request, signature)
        finding = partial(self._finding, signature, touch, other, pages, requests)
        if not self._causes.add(signature, finding) and _is_inverted(touch, other):
            examples = self._causes.examples(signature)
            if not any(isinstance(each.evidence, PagePair) and each.evidence.inverted for each in examples):
                examples[-1] = finding()  # it tells more

    def _other(self, epoch: int, wrote: bool) -> _Other:
        index, actor = divmod(epoch, ACTORS_MAX)
        ref = (list(self._order.actors)[actor], index)
        return _Other(ref, wrote, self._operations.get(ref))

    def _requests(self, touch: _Touch, others: list[_Other], pages: Pages) -> list[str]:
        """Return for whom the raced pages were touched, by this operation or read by the earlier ones."""
        place = (touch.tier, touch.component, touch.layer)
        accesses = list(touch.accesses)
        for other in others:
            if other.op is not None and not other.write:
                reads = [access for access in other.op.accesses if not access.write]
                accesses += [each for each in reads if (each.tier, each.component, each.layer) == place]
        hit = [each.request for each in accesses if np.isin(self._all[each.pages], pages).any()]
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
    op = touch.op
    earlier = other.op.name if other.op else kind_of(other.ref[0])
    ends = sorted([f"{earlier} {_KINDS[other.write]}", f"{op.name} {_KINDS[touch.write]}"], reverse=True)
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
    if op is None:
        return Operation(*ref, write=write)
    times = (op.enqueued_us, op.start_us, op.end_us)
    return Operation(*ref, op.name, op.layer, op.step, op.site, *times, write)
