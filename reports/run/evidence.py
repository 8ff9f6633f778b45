"""What the event log says around a finding: the operations of all streams, and the life of the page."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import msgspec

from detectors.base import Finding
from detectors.evidence import Operation, PagePair, PageRead, PageUse
from repro.base.probe import Access, Event, Op, OpRef, PageEvent, PageSet

HISTORY_STEPS_MAX = 40
OPERATIONS_READ_MAX = 5000  # operations read of one window; more are only counted
PAD_SHARE = 0.35  # share of the two operations' span, shown on each side
PAD_US_MIN = 30.0
BAD_READ_PAD_US = 2000.0  # around a finding that names one moment only


class Step(msgspec.Struct, frozen=True):
    """One line of a page's history."""

    at_us: float
    what: str  # alloc | free | publish | write | read
    who: str
    generation: int  # how often the page had been handed out by then
    racing: bool = False
    count: int = 1  # equal steps in a row, folded
    until_us: float = 0.0  # the last of them


class Window(msgspec.Struct, frozen=True):
    """The stretch of virtual time around one finding."""

    start_us: float
    end_us: float
    sides: tuple[Operation, ...]
    operations: tuple[Op, ...]
    left_out: int
    page: int | None
    tier: str
    history: tuple[Step, ...]


_Doing = tuple[str, str, int, str, str, int]  # what, operation, layer, stream, request or owner, generation


@dataclass(slots=True)
class _Line:
    """A step of the history that may still grow."""

    at_us: float
    doing: _Doing
    racing: bool
    count: int
    until_us: float


@dataclass
class _Target:
    """What is collected for one finding."""

    sides: tuple[Operation, ...]
    refs: tuple[OpRef, ...]  # the operations of both sides
    start_us: float
    end_us: float
    page: int | None
    page_set: int | None
    tier: str
    component: str
    layer: int | None
    sets: dict[int, bool] = field(default_factory=dict)  # page set -> holds the page
    operations: list[Op] = field(default_factory=list)
    left_out: int = 0
    generation: int = 0
    history: deque[_Line] = field(default_factory=lambda: deque(maxlen=HISTORY_STEPS_MAX))

    def add(self, at_us: float, doing: _Doing, racing: bool = False) -> None:
        """Take what happened next to the page; the same again, several times in a row, is one line."""
        last = self.history[-1] if self.history else None
        if last is not None and not racing and not last.racing and last.doing == doing:
            last.count += 1
            last.until_us = at_us
        else:
            self.history.append(_Line(at_us, doing, racing, 1, at_us))


def windows(read: Callable[[], Iterable[Event]], findings: Sequence[Finding]) -> list[Window | None]:
    """Return the window of each finding, None for one that names no operation.

    Reads the events once, or twice when a finding names its pages by a set.
    """
    targets = [_target(finding) for finding in findings]
    live = [target for target in targets if target is not None]
    _resolve_pages(read, [target for target in live if target.page is None and target.page_set is not None])
    if live:
        for event in read():
            for target in live:
                _feed(target, event)
    return [None if target is None else _window(target) for target in targets]


def _target(finding: Finding) -> _Target | None:
    evidence, sides = finding.evidence, finding.evidence.operations
    if not isinstance(evidence, PagePair | PageRead | PageUse):
        return None
    times = [us for side in sides for us in (side.start_us, side.end_us) if us is not None]
    start_us, end_us = (min(times), max(times)) if times else (finding.at_us, finding.at_us)
    pad_us = max((end_us - start_us) * PAD_SHARE, PAD_US_MIN) if times else BAD_READ_PAD_US
    return _Target(
        sides=sides,
        refs=tuple((side.stream, side.index) for side in sides),
        start_us=max(0.0, start_us - pad_us),
        end_us=end_us + pad_us,
        page=None if isinstance(evidence, PageRead) else evidence.page,
        page_set=evidence.pages if isinstance(evidence, PageRead) else None,
        tier="device" if isinstance(evidence, PageRead) else evidence.tier,
        component="" if isinstance(evidence, PageUse) else evidence.component,
        layer=None if isinstance(evidence, PageUse) else evidence.layer,
    )


def _resolve_pages(read: Callable[[], Iterable[Event]], targets: Sequence[_Target]) -> None:
    """Give targets that know only a set of pages its first page."""
    wanted = {target.page_set for target in targets}
    if not wanted:
        return
    sets = (event for event in read() if isinstance(event, PageSet))
    first = {event.id: event.ranges[0] for event in sets if event.id in wanted and event.ranges}
    for target in targets:
        target.page = first.get(target.page_set or 0)


def _feed(target: _Target, event: Event) -> None:
    if isinstance(event, PageSet):
        bounds = zip(event.ranges[::2], event.ranges[1::2], strict=True)
        page = target.page
        target.sets[event.id] = page is not None and any(start <= page < stop for start, stop in bounds)
    elif isinstance(event, Op):
        _feed_operation(target, event)
    elif isinstance(event, PageEvent) and event.tier == target.tier and target.sets.get(event.pages):
        target.generation += event.what == "alloc"
        if event.at_us <= target.end_us:
            target.add(event.at_us, (event.what, "", -1, "", event.owner, target.generation))


def _feed_operation(target: _Target, op: Op) -> None:
    if op.end_us >= target.start_us and op.start_us <= target.end_us:
        if len(target.operations) < OPERATIONS_READ_MAX:
            target.operations.append(op)
        else:
            target.left_out += 1
    if op.start_us > target.end_us:
        return
    for access in op.accesses:
        if target.sets.get(access.pages) and _same_place(target, access):
            at_us, what = (op.end_us, "write") if access.write else (op.start_us, "read")
            doing = (what, op.name, access.layer, op.stream, access.request, target.generation)
            target.add(at_us, doing, (op.stream, op.index) in target.refs)


def _same_place(target: _Target, access: Access) -> bool:
    layer = target.layer in (None, access.layer)
    return layer and access.tier == target.tier and target.component in ("", access.component)


def _window(target: _Target) -> Window:
    recorded = {(op.stream, op.index): op for op in target.operations}
    return Window(
        start_us=target.start_us,
        end_us=target.end_us,
        sides=tuple(_completed(side, recorded.get((side.stream, side.index))) for side in target.sides),
        operations=tuple(target.operations),
        left_out=target.left_out,
        page=target.page,
        tier=target.tier,
        history=tuple(_step(line) for line in sorted(target.history, key=lambda line: line.at_us)),
    )


def _step(line: _Line) -> Step:
    what, operation, layer, stream, whom, generation = line.doing
    if not operation:
        who = f"by {whom}" if whom else ""
    else:
        at_layer = f", layer {layer}" if layer >= 0 else ""
        who = f"{operation}{at_layer}, on {stream}" + (f" for {whom}" if whom else "")
    return Step(line.at_us, what, who, generation, line.racing, line.count, line.until_us)


def _completed(side: Operation, op: Op | None) -> Operation:
    """Return the side with what the log knows better than the evidence: a bad read names no times."""
    if op is None or side.start_us is not None:
        return side
    return msgspec.structs.replace(
        side, name=op.name, step=op.step, site=op.site, start_us=op.start_us, end_us=op.end_us
    )
