"""Swim lanes: where each stream was in virtual time around a finding, as shapes for a template."""

import math
from collections.abc import Sequence
from typing import Literal

import msgspec

from detectors.evidence import Operation
from reports.run.evidence import Window
from reports.run.story import time_text
from repro.base.probe import Op
from repro.record.requests import RequestRecord

WIDTH = 960.0
GUTTER = 112.0  # space for the names of the lanes
MARGIN = 14.0
TOP = 34.0
LANE = 48.0
BAR = 24.0
REQUEST_LANE = 24.0
REQUEST_BAR = 8.0
BARS_MAX = 500
EDGES_MAX = 60
OTHER_REQUESTS_MAX = 4
LETTER = 6.3  # mean width of a letter at the size that the template uses
BAR_WIDTH_MIN = 1.5

Role = Literal["", "first", "second", "involved"]


class Bar(msgspec.Struct, frozen=True):
    """An operation or a request; `title` is its tooltip."""

    x: float
    y: float
    width: float
    height: float
    role: Role
    label: str
    title: str


class Line(msgspec.Struct, frozen=True):
    """An edge between two operations, or what is missing."""

    x1: float
    y1: float
    x2: float
    y2: float
    title: str


class Mark(msgspec.Struct, frozen=True):
    """A text at a place: a tick of the axis or the name of a lane."""

    x: float
    y: float
    text: str
    anchor: Literal["start", "middle", "end"] = "middle"


class Lanes(msgspec.Struct, frozen=True):
    """A drawing of WIDTH by `height`."""

    width: float
    height: float
    axis_y: float
    names: tuple[Mark, ...]
    ticks: tuple[Mark, ...]
    bars: tuple[Bar, ...]
    requests: tuple[Bar, ...]
    first_tokens: tuple[Mark, ...]
    edges: tuple[Line, ...]
    missing: Line | None
    callouts: tuple[Mark, ...]
    overlap: tuple[float, float] | None  # x, width
    caption: str
    alt: str


class _Scale:
    """Virtual time to the drawing's x."""

    def __init__(self, start_us: float, end_us: float) -> None:
        self.start_us, self.end_us = start_us, end_us
        self._per_us = (WIDTH - GUTTER - MARGIN) / max(end_us - start_us, 1e-9)

    def x(self, us: float) -> float:
        return GUTTER + (min(max(us, self.start_us), self.end_us) - self.start_us) * self._per_us

    def span(self, start_us: float, end_us: float) -> tuple[float, float]:
        x = self.x(start_us)
        return x, max(self.x(end_us) - x, BAR_WIDTH_MIN)


def draw(window: Window, records: Sequence[RequestRecord], involved: Sequence[str]) -> Lanes:
    """Return the lanes of a window: the streams, those of the race first, then the requests of the time."""
    scale = _Scale(window.start_us, window.end_us)
    operations, left_out = _nearest(window)
    others = sorted({op.stream for op in operations})
    streams = list(dict.fromkeys([*(side.stream for side in window.sides), *others]))
    middle = {stream: TOP + LANE * (number + 0.5) for number, stream in enumerate(streams)}
    bars = tuple(_bar(op, scale, middle[op.stream], window.sides) for op in operations)
    below = TOP + LANE * len(streams)
    requests, first_tokens, names = _requests(records, involved, scale, below)
    lanes = tuple(Mark(GUTTER - 12, middle[stream] + 4, stream, "end") for stream in streams)
    height = below + REQUEST_LANE * len(requests) + (10 if requests else 0)
    return Lanes(
        width=WIDTH,
        height=height,
        axis_y=TOP - 6,
        names=lanes + names,
        ticks=_ticks(scale),
        bars=bars,
        requests=requests,
        first_tokens=first_tokens,
        edges=_edges(operations, scale, middle),
        missing=_missing(window.sides, scale, middle),
        callouts=_callouts(window.sides, scale, middle),
        overlap=_overlap(window.sides, scale),
        caption=_caption(window, left_out),
        alt=_alt(window, streams),
    )


def _nearest(window: Window) -> tuple[list[Op], int]:
    """Return at most BARS_MAX operations, those nearest to the finding's, and how many were left out."""
    centres = [sum(side.span_us) / 2 for side in window.sides if side.span_us is not None]

    def distance_us(op: Op) -> float:
        middle_us = (op.start_us + op.end_us) / 2
        return min((abs(middle_us - centre) for centre in centres), default=0.0)

    nearest = sorted(window.operations, key=distance_us)[:BARS_MAX]
    nearest.sort(key=lambda op: (op.start_us, op.stream, op.index))
    return nearest, window.left_out + len(window.operations) - len(nearest)


def _bar(op: Op, scale: _Scale, middle: float, sides: Sequence[Operation]) -> Bar:
    x, width = scale.span(op.start_us, op.end_us)
    role: Role = ""
    for side, name in zip(sides, ("first", "second"), strict=False):
        if (side.stream, side.index) == (op.stream, op.index):
            role = "first" if name == "first" and len(sides) > 1 else "second"
    layer = f"L{op.layer}" if op.layer >= 0 else ""
    labels = (f"{op.name} {layer}".strip(), layer, "")
    label = next(text for text in labels if len(text) * LETTER < width - 8 or not text)
    waits = ", ".join(f"{edge.why} ({edge.source[0]}#{edge.source[1]})" for edge in op.after)
    times = f"{time_text(op.start_us)} to {time_text(op.end_us)}"
    title = f"{op.stream}#{op.index} {op.name} {layer}, {times}, {op.site}"
    title += f"; waited for {waits}" if waits else ""
    return Bar(x, middle - BAR / 2, width, BAR, role, "" if role else label, title)


def _requests(
    records: Sequence[RequestRecord], involved: Sequence[str], scale: _Scale, below: float
) -> tuple[tuple[Bar, ...], tuple[Mark, ...], tuple[Mark, ...]]:
    alive = [record for record in records if _overlaps(record, scale)]
    victims = [record for record in alive if record.request in involved]
    others = [record for record in alive if record.request not in involved]
    bars, first_tokens, names = [], [], []
    for number, record in enumerate(victims[:OTHER_REQUESTS_MAX] + others[:OTHER_REQUESTS_MAX]):
        middle = below + REQUEST_LANE * (number + 0.5) + 4
        x, width = scale.span(record.sent_us, _end_us(record))
        role: Role = "involved" if record.request in involved else ""
        ended = f"ended {time_text(record.finished_us)}" if record.finished_us >= 0 else "never ended"
        title = f"request {record.request}: sent {time_text(record.sent_us)}, {ended}"
        bars.append(Bar(x, middle - REQUEST_BAR / 2, width, REQUEST_BAR, role, "", title))
        names.append(Mark(GUTTER - 12, middle + 4, _short(record.request), "end"))
        if scale.start_us <= record.first_token_us <= scale.end_us:
            first_tokens.append(Mark(scale.x(record.first_token_us), middle, "first token"))
    return tuple(bars), tuple(first_tokens), tuple(names)


def _overlaps(record: RequestRecord, scale: _Scale) -> bool:
    return record.sent_us >= 0 and record.sent_us <= scale.end_us and _end_us(record) >= scale.start_us


def _end_us(record: RequestRecord) -> float:
    return record.finished_us if record.finished_us >= 0 else math.inf


def _short(name: str) -> str:
    return name if len(name) <= 14 else f"\u2026{name[-12:]}"


def _edges(operations: Sequence[Op], scale: _Scale, middle: dict[str, float]) -> tuple[Line, ...]:
    places = {(op.stream, op.index): op for op in operations}
    lines = []
    for op in operations:
        for edge in op.after:
            source = places.get(edge.source)
            if source is not None and source.stream != op.stream:
                down = middle[op.stream] > middle[source.stream]
                step = BAR / 2 if down else -BAR / 2
                start, end = (scale.x(source.end_us), scale.x(op.start_us))
                title = f"{op.name} waits for {source.name}: {edge.why}"
                lines.append(Line(start, middle[source.stream] + step, end, middle[op.stream] - step, title))
    return tuple(lines[:EDGES_MAX])


def _missing(sides: Sequence[Operation], scale: _Scale, middle: dict[str, float]) -> Line | None:
    if len(sides) != 2 or sides[0].span_us is None or sides[1].span_us is None:
        return None
    earlier, later = middle[sides[0].stream], middle[sides[1].stream]
    step = BAR / 2 if later > earlier else -BAR / 2 if later < earlier else 0.0
    start, end = scale.x(sides[0].span_us[1]), scale.x(sides[1].span_us[0])
    return Line(start, earlier + step, end, later - step, "nothing orders these two")


def _callouts(sides: Sequence[Operation], scale: _Scale, middle: dict[str, float]) -> tuple[Mark, ...]:
    marks = []
    for side in sides:
        if side.span_us is None:
            continue
        text = f"{side.label} {side.verb}" if side.write is not None else side.label
        x, width = scale.span(*side.span_us)
        half = len(text) * LETTER / 2
        centre = min(max(x + width / 2, GUTTER + half), WIDTH - MARGIN - half)
        marks.append(Mark(centre, middle[side.stream] - BAR / 2 - 6, text))
    return tuple(marks)


def _overlap(sides: Sequence[Operation], scale: _Scale) -> tuple[float, float] | None:
    spans = [side.span_us for side in sides if side.span_us is not None]
    if len(spans) != 2:
        return None
    start_us, end_us = max(start for start, _ in spans), min(end for _, end in spans)
    return scale.span(start_us, end_us) if end_us > start_us else None


def _ticks(scale: _Scale) -> tuple[Mark, ...]:
    span_us = max(scale.end_us - scale.start_us, 1e-9)
    rough = span_us / 6
    power = 10 ** math.floor(math.log10(rough))
    step_us = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    unit, per_unit = ("ms", 1e3) if step_us >= 1000 else ("us", 1.0)
    steps = (number * step_us for number in range(int(span_us / step_us) + 1))
    ticks = (Mark(scale.x(scale.start_us + us), TOP - 14, f"+{round(us / per_unit, 3):,g} {unit}") for us in steps)
    return tuple(tick for tick in ticks if tick.x + len(tick.text) * LETTER / 2 <= WIDTH)


def _caption(window: Window, left_out: int) -> str:
    times = f"Virtual time from {time_text(window.start_us)} to {time_text(window.end_us)}."
    return times + (f" {left_out:,} operations further away are not drawn." if left_out else "")


def _alt(window: Window, streams: Sequence[str]) -> str:
    sides = " and ".join(f"{side.label} on {side.stream}" for side in window.sides)
    return f"Timeline of the streams {', '.join(streams)} around {sides}"
