"""Charts as inline SVG that take their colours from the page, so they follow light and dark mode."""

from collections.abc import Sequence
from typing import Any

import altair as alt
import msgspec
import pandas as pd
import vl_convert as vlc

from detectors.answers.acceptance import LENGTH_MIN, RATE_MAX
from reports.experiment.separation import Answer, Truth
from repro.record.requests import RequestRecord

POINTS_MAX = 1200
WIDE, NARROW = 820, 300
HEIGHT = 190
FONT = "system-ui, sans-serif"

# vega writes colours into attributes; these stand for the page's own until the SVG is done.
INK, MUTED, LINE, ACCENT = "#010101", "#020202", "#030303", "#040404"
_PAGE_COLOURS = {INK: "var(--ink)", MUTED: "var(--muted)", LINE: "var(--line)", ACCENT: "var(--accent)"}
HEALTHY, WRONG = "healthy", "read wrong bytes or diverged"
SCATTER_HEIGHT = 320
MARKS: dict[Truth, tuple[str, str]] = {  # colour and shape of an answer in the scatter; the last are drawn on top
    "clean": (MUTED, "circle"),
    "unharmed": (INK, "square"),
    "diverged": (ACCENT, "diamond"),
    "garbled": (ACCENT, "cross"),
    "looping": (ACCENT, "triangle-up"),
}


def first_token_chart(records: Sequence[RequestRecord], *, width: int, real_time: bool = False) -> str:
    """Return an SVG of time to first token over the time of sending; "" when no answer began.

    Holds numbers and fixed words only, no text of requests. A real clock began long before the run: its time
    is shown from the first request on.
    """
    sent_us = [record.sent_us for record in records if record.sent_us >= 0]
    origin_us = min(sent_us, default=0.0) if real_time else 0.0
    rows = [_row(record, origin_us) for record in records if record.sent_us >= 0 and record.first_token_us >= 0]
    if not rows:
        return ""
    wrong = [row for row in rows if row["kind"] == WRONG][:POINTS_MAX]
    healthy = [row for row in rows if row["kind"] == HEALTHY]
    stride = max(1, -(-len(healthy) // max(1, POINTS_MAX - len(wrong))))
    frame = pd.DataFrame(healthy[::stride] + wrong)  # the wrong ones last: drawn on top
    kinds = [HEALTHY, WRONG]
    colours = alt.Scale(domain=kinds, range=[MUTED, ACCENT])
    shapes = alt.Scale(domain=kinds, range=["circle", "diamond"])
    across = alt.Axis(tickCount=6 if width > NARROW else 4)
    chart = (
        alt.Chart(frame, width=width, height=HEIGHT)
        .mark_point(filled=True, size=34, opacity=0.8)
        .encode(
            x=alt.X("sent_s:Q", title="sent, seconds" if real_time else "sent, virtual seconds", axis=across),
            y=alt.Y("ttft_ms:Q", title="time to first token, ms", axis=alt.Axis(tickCount=4)),
            color=alt.Color("kind:N", scale=colours, title=None),
            shape=alt.Shape("kind:N", scale=shapes, title=None),
        )
    )
    return _svg(chart)


def _row(record: RequestRecord, origin_us: float) -> dict[str, object]:
    wrong = record.corrupted or record.poisoned or record.oracle == "diverged"
    return {
        "sent_s": round((record.sent_us - origin_us) / 1e6, 4),
        "ttft_ms": round((record.first_token_us - record.sent_us) / 1e3, 3),
        "kind": WRONG if wrong else HEALTHY,
    }


def acceptance_chart(answers: Sequence[Answer], *, width: int) -> str:
    """Return an SVG of accept length and accept rate with the fixed rule's lines; "" without answers."""
    if not answers:
        return ""
    frame = pd.DataFrame(
        [{"length": each.length, "rate": each.rate, "kind": each.truth} for each in _bad_last(answers)]
    )
    kinds, (colours, shapes) = list(MARKS), map(list, zip(*MARKS.values(), strict=True))
    points = (
        alt.Chart(frame)
        .mark_point(size=46, opacity=0.85)
        .encode(
            x=alt.X("length:Q", title="accept length, tokens a verify", scale=alt.Scale(zero=False, domainMin=1)),
            y=alt.Y("rate:Q", title="accept rate", scale=alt.Scale(domain=[0, 1])),
            color=alt.Color("kind:N", scale=alt.Scale(domain=kinds, range=colours), title=None),
            shape=alt.Shape("kind:N", scale=alt.Scale(domain=kinds, range=shapes), title=None),
        )
    )
    length, rate = pd.DataFrame({"length": [LENGTH_MIN]}), pd.DataFrame({"rate": [RATE_MAX]})
    dashes: dict[str, Any] = {"strokeDash": [5, 4], "color": ACCENT}
    limits = alt.layer(
        alt.Chart(length).mark_rule(**dashes).encode(x="length:Q"),
        alt.Chart(rate).mark_rule(**dashes).encode(y="rate:Q"),
    )
    return _svg(alt.layer(points, limits).properties(width=width, height=SCATTER_HEIGHT))


def _bad_last(answers: Sequence[Answer]) -> list[Answer]:
    """Return at most POINTS_MAX answers in the order of drawing; clean ones are left out first."""
    order = list(MARKS)
    ranked = sorted(answers, key=lambda each: -order.index(each.truth))[:POINTS_MAX]
    return ranked[::-1]


class NightPoint(msgspec.Struct, frozen=True):
    """The rate of wrong requests of one night with its interval over sessions."""

    utc: str
    share: float
    low: float
    high: float


def history_chart(nights: Sequence[NightPoint], *, width: int) -> str:
    """Return an SVG of the rates of nights, the last of them marked; "" for a single night."""
    if len(nights) < 2:
        return ""
    frame = pd.DataFrame(
        [
            {"night": number, "utc": each.utc, "share": each.share, "low": each.low, "high": each.high,
             "kind": "tonight" if number == len(nights) else "past"}
            for number, each in enumerate(nights, start=1)
        ]
    )  # fmt: skip
    across = alt.X("night:Q", title="night", axis=alt.Axis(tickMinStep=1, format="d"), scale=alt.Scale(zero=False))
    colour = alt.Color("kind:N", scale=alt.Scale(domain=["past", "tonight"], range=[MUTED, ACCENT]), title=None)
    percent = alt.Axis(format="%", tickCount=4)
    spans = (
        alt.Chart(frame)
        .mark_rule()
        .encode(x=across, y=alt.Y("low:Q", title="wrong requests, 95 %", axis=percent), y2="high:Q", color=colour)
    )
    points = alt.Chart(frame).mark_point(filled=True, size=46).encode(x=across, y="share:Q", color=colour)
    return _svg(alt.layer(spans, points).properties(width=width, height=HEIGHT))


def _svg(chart: alt.Chart | alt.LayerChart | alt.FacetChart) -> str:
    styled = (
        chart.configure(background="transparent", font=FONT)
        .configure_axis(
            labelColor=MUTED, titleColor=MUTED, gridColor=LINE, domainColor=LINE, tickColor=LINE,
            labelFontSize=11, titleFontSize=11, titleFontWeight="normal",
        )
        .configure_view(stroke=None)
        .configure_legend(orient="top", labelColor=INK, labelFontSize=12)
    )  # fmt: skip
    svg = str(vlc.vegalite_to_svg(styled.to_json()))
    for stand_in, colour in _PAGE_COLOURS.items():
        svg = svg.replace(stand_in, colour)
    return svg
