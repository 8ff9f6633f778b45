"""A night for people: its page with the history of past nights, and the summary in Markdown."""

from collections.abc import Sequence
from functools import partial
from urllib.parse import quote

from markupsafe import Markup

from reports import charts
from reports.night.night import HEADLINES, CaseRow, GateRow, Night, PastNight
from reports.page import environment, page_parts
from reports.rates import Rate, interval_text, share_text

ANSWERS = {True: "yes", False: "no", None: "cannot tell"}
ROWS_MAX = 60  # rows of findings in Markdown: a CI's summary page takes a megabyte
CLEAR = {code: " " for code in (*range(32), 0x7F)} | {ord("|"): "\\|", ord("<"): "&lt;", ord("`"): "'"}


def render_night(night: Night, history: Sequence[PastNight]) -> str:
    """Return the page as one HTML file that needs no other; it links to the run folders beside it."""
    page = environment()
    page.filters |= {"interval": _interval, "speed": _speed, "answer": ANSWERS.get, "link": partial(_link, night)}
    points = [_point(past.utc, past.rate) for past in history] + [_point(night.utc, night.rate)]
    return page.get_template("nightly.html.jinja").render(
        n=night,
        **page_parts(),
        headline=HEADLINES[night.exit_code],
        history=list(history)[::-1],
        chart_wide=Markup(charts.history_chart(points, width=charts.WIDE)),
        chart_narrow=Markup(charts.history_chart(points, width=charts.NARROW)),
    )


def render_markdown(night: Night) -> str:
    """Return a summary fit for a CI step's page."""
    answer = f"; against the baseline: {night.answer}" if night.answer else ""
    lines = [
        f"## {night.verdict.capitalize()}: nightly {_clear(night.suite)}{answer}",
        "",
        f"{HEADLINES[night.exit_code]} {night.runs:,} runs, {night.requests:,} requests, "
        f"{night.elapsed_s / 60:.1f} minutes ({night.scaling}); target {_clear(night.target)}{_defect(night)}.",
        "",
        *(f"- {_clear(why)}" for why in night.why),
        *([""] if night.why else []),
        "| case | property | as it should be | what came of it | wrong, 95 % over sessions |",
        "| --- | --- | --- | --- | --- |",
        *(_case_line(row) for row in night.cases),
        "",
        "| gate | limit | value | met |",
        "| --- | --- | --- | --- |",
        *(_gate_line(gate) for gate in night.gates),
    ]
    if night.findings:
        lines += ["", "| cause | new | runs | replay |", "| --- | --- | --- | --- |"]
        for row in night.findings[:ROWS_MAX]:
            new = "**new**" if row.new else f"in {row.nights} past nights"
            lines.append(f"| {_clear(row.signature)} | {new} | {row.runs} | `{_clear(row.replay)}` |")
    if night.comparison is not None:
        lines += ["", f"Against {_clear(night.comparison.before)}: {_clear(night.comparison.told)}."]
    return "\n".join(lines) + "\n"


def _case_line(row: CaseRow) -> str:
    cells = (row.case, row.role, ANSWERS[row.met], row.told, f"{share_text(row.rate.share)} ({_interval(row.rate)})")
    return f"| {' | '.join(map(_clear, cells))} |"


def _gate_line(gate: GateRow) -> str:
    return f"| {' | '.join(map(_clear, (gate.name, gate.limit, gate.value, ANSWERS[gate.met])))} |"


def _clear(text: str) -> str:
    """Return a text that cannot end its table cell or begin a tag."""
    return text.translate(CLEAR)


def _defect(night: Night) -> str:
    return f" with the defect {_clear(night.defect)}" if night.defect else ""


def _interval(rate: Rate) -> str:
    return interval_text(rate.session_low, rate.session_high)


def _speed(tokens_per_s: float | None) -> str:
    return "\u2013" if tokens_per_s is None else f"{tokens_per_s:,.0f}"


def _link(night: Night, path: str) -> str:
    """Return the way from the page to a file of its night, so that the folder can be moved as a whole."""
    return quote(path.removeprefix(f"{night.folder}/"))


def _point(utc: str, rate: Rate) -> charts.NightPoint:
    return charts.NightPoint(utc, rate.share, rate.session_low, rate.session_high)
