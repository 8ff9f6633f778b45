"""The report of a run as one HTML file that needs no other; `reports.page` escapes what came from outside."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from markupsafe import Markup

from detectors.base import Finding
from detectors.evidence import (
    ControlSpan,
    Evidence,
    GarbledSpan,
    LeakedNonce,
    Operation,
    PageChange,
    PagePair,
    PageUse,
)
from reports import charts
from reports.page import environment, page_parts
from reports.rates import cluster_text
from reports.run.answers import Comparison, compare
from reports.run.evidence import Window, windows
from reports.run.lanes import Lanes, draw
from reports.run.story import lead_example, missing_edge, replay_command, story, wrong_reads
from reports.run.summary import Group, Summary, headline, summarise
from reports.run.words import compared_text, cut_text, loop_lag_text, model_own_text, retries_text
from repro.base.errors import RecordError
from repro.base.probe import OpRef
from repro.record.requests import RequestRecord
from repro.record.view import Run

REPORT_BYTES_MAX = 5 * 2**20
EXAMPLES_MAX = 5
EVIDENCE_CHARACTERS_MAX = 4000
EXCERPT_CHARACTERS_MAX = 140


class Bounds(msgspec.Struct, frozen=True):
    """How much a report shows; the rest is counted in words."""

    causes: int = 6  # named at the top
    groups: int = 24
    drawn: int = 10  # findings with swim lanes
    answers: int = 30
    requests: int = 500


TIGHT = Bounds(groups=12, drawn=3, answers=8, requests=100)  # bounds of a report that came out too large


class FindingView(msgspec.Struct, frozen=True):
    """One group of findings as the page shows it."""

    group: Group
    first: Finding
    story: str
    sides: tuple[Operation, ...]
    missing_edge: str
    page: str
    lanes: Lanes | None
    window: Window | None
    history: tuple[str, ...]  # the detector's own, where the log has none
    comparison: Comparison | None
    excerpt: str
    raw: str
    others: tuple[Finding, ...]
    others_left_out: int


class AnswerView(msgspec.Struct, frozen=True):
    """A request with a wrong answer, beside the clean one."""

    record: RequestRecord
    marks: tuple[str, ...]
    comparison: Comparison


class RequestRow(msgspec.Struct, frozen=True):
    """One row of the table of requests."""

    record: RequestRecord
    marks: tuple[str, ...]
    ttft_ms: float | None
    excerpt: str


def write_report(run: Run) -> Path:
    """Write `report.html` into the run's folder and return its path. Raises RecordError."""
    path = run.path / "report.html"
    unfinished = path.with_name("report.html.unfinished")
    try:
        unfinished.write_text(render_report(run), encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise RecordError(
            f"{path}: cannot be written ({error.strerror}). The run itself is whole; free some space "
            f"and run: repro report {run.path}"
        ) from error
    return path


def render_report(run: Run, bounds: Bounds | None = None) -> str:
    """Return the page, at most REPORT_BYTES_MAX long."""
    summary = summarise(run)
    page = _render(run, summary, bounds or Bounds())
    return page if len(page.encode()) <= REPORT_BYTES_MAX else _render(run, summary, TIGHT)


def _render(run: Run, summary: Summary, bounds: Bounds) -> str:
    answers = _answers(run.requests)
    real_time = bool(summary.url)
    return environment().get_template("report.html.jinja").render(
        s=summary,
        bounds=bounds,
        **page_parts(),
        headline=headline(summary),
        cluster_text=cluster_text(summary.rate),
        compared=compared_text(summary),
        own=model_own_text(summary),
        cut=cut_text(summary.cut),
        retries=retries_text(summary.retries),
        loop_lag=loop_lag_text(summary),
        replay=replay_command(summary),
        findings=_findings(run, summary, bounds),
        findings_left_out=max(0, len(summary.groups) - bounds.groups),
        answers=answers[: bounds.answers],
        answers_left_out=max(0, len(answers) - bounds.answers),
        rows=_rows(run.requests)[: bounds.requests],
        rows_left_out=max(0, len(run.requests) - bounds.requests),
        chart_wide=Markup(charts.first_token_chart(run.requests, width=charts.WIDE, real_time=real_time)),
        chart_narrow=Markup(charts.first_token_chart(run.requests, width=charts.NARROW, real_time=real_time)),
    )  # fmt: skip


def _findings(run: Run, summary: Summary, bounds: Bounds) -> list[FindingView]:
    groups = summary.groups[: bounds.groups]
    reads = wrong_reads(summary.groups)
    firsts = [lead_example(group, reads) for group in groups]
    found = windows(run.events, firsts[: bounds.drawn])
    found += [None] * (len(firsts) - len(found))
    by_request = {record.request: record for record in run.requests}
    return [
        _finding(group, first, window, run.requests, by_request, reads)
        for group, first, window in zip(groups, firsts, found, strict=True)
    ]


def _finding(
    group: Group,
    first: Finding,
    window: Window | None,
    records: Sequence[RequestRecord],
    by_request: Mapping[str, RequestRecord],
    reads: Mapping[OpRef, Finding],
) -> FindingView:
    evidence = first.evidence
    involved = [first.request, *(evidence.requests if isinstance(evidence, PagePair) else ())]
    owned = evidence if isinstance(evidence, PagePair | PageUse | PageChange) else None
    page = owned.page if owned else window.page if window else None
    return FindingView(
        group=group,
        first=first,
        story=story(first, reads),
        sides=window.sides if window else evidence.operations,
        missing_edge=missing_edge(first),
        page="" if page is None else str(page),
        lanes=draw(window, records, involved) if window and window.operations else None,
        window=window,
        history=owned.history if owned else (),
        comparison=_if_different(compare(first, by_request.get(first.request))),
        excerpt=evidence.excerpt if isinstance(evidence, GarbledSpan | ControlSpan | LeakedNonce) else "",
        raw=_raw(evidence),
        others=tuple(each for each in group.examples if each is not first)[: EXAMPLES_MAX - 1],
        others_left_out=max(0, group.count - len(group.examples[:EXAMPLES_MAX])),
    )


def _if_different(comparison: Comparison | None) -> Comparison | None:
    return None if comparison is None or comparison.equal else comparison


def _raw(evidence: Evidence) -> str:
    text = msgspec.json.format(msgspec.json.encode(evidence), indent=2).decode()
    if len(text) <= EVIDENCE_CHARACTERS_MAX:
        return text
    return f"{text[:EVIDENCE_CHARACTERS_MAX]}\n... (the whole of it is in findings.jsonl)"


def _answers(records: Sequence[RequestRecord]) -> list[AnswerView]:
    views = []
    for record in records:
        if record.oracle != "diverged" and not record.visible:
            continue
        comparison = _if_different(compare(None, record))
        if comparison is not None:
            views.append(AnswerView(record, _marks(record), comparison))
    return sorted(views, key=lambda view: not view.record.visible)


def _marks(record: RequestRecord) -> tuple[str, ...]:
    notes = {
        "raced": record.raced,
        "corrupted": record.corrupted,
        f"poisoned by {record.origin}" if record.origin else "poisoned": record.poisoned,
        "diverged": record.oracle == "diverged",
        "odd acceptance": record.acceptance,
        "visible": record.visible,
        "model's own": record.model_own,
        f"retry of {record.retry_of}": bool(record.retry_of),
        "error": bool(record.error),
    }
    return tuple(name for name, holds in notes.items() if holds)


def _rows(records: Sequence[RequestRecord]) -> list[RequestRow]:
    rows = [
        RequestRow(
            record,
            _marks(record),
            (record.first_token_us - record.sent_us) / 1e3 if record.first_token_us >= 0 else None,
            _excerpt(record),
        )
        for record in records
    ]
    return sorted(rows, key=lambda row: -len(row.marks))  # stable: equal ones stay in the run's order


def _excerpt(record: RequestRecord) -> str:
    text = " ".join((record.error or record.text)[: EXCERPT_CHARACTERS_MAX * 4].split())
    return text if len(text) <= EXCERPT_CHARACTERS_MAX else f"{text[:EXCERPT_CHARACTERS_MAX]}\u2026"
