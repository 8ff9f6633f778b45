"""What a stranger reads after a run, on a terminal of any width, with or without colours."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from detectors.base import Finding
from reports.rates import cluster_text
from reports.run.answers import Comparison, compare, pieces
from reports.run.story import best_finding, missing_edge, replay_command, story, wrong_reads
from reports.run.summary import Group as Kind
from reports.run.summary import Summary, exercise_label, headline
from reports.run.words import compared_text, cut_text, loop_lag_text, model_own_text, retries_text
from repro.record.requests import RequestRecord
from repro.record.verdict import DetectorAnswer
from repro.record.view import Run

STYLES = {"clean": "bold green", "anomaly": "bold red", "failed": "bold red"}
SNIPPET_LINES_MAX = 6
ENDING_LINES_MAX, ENDING_CHARACTERS_MAX = 4, 400  # of an answer that looks wrong
SNIPPET_BEFORE_LINES_MAX = 2
LINE_CHARACTERS_MAX = 400
BAR_CELLS = 24
CAUSES_MAX = 8
NARROW_CELLS = 60

_PLAIN: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False}


def print_summary(run: Run, summary: Summary, console: Console, *, report: str = "") -> None:
    """Print verdict, funnel, the best finding with its answers, and the command that replays the run."""
    best = best_finding(summary.groups)
    parts: list[RenderableType] = [*_headline(summary), "", _Funnel(summary)]
    if best is not None:
        parts += ["", _causes(summary.groups), "", *_finding(best, summary, run.requests)]
    _print(Group(*parts, "", _facts(summary)), console)
    for line in _places(summary, report):  # never wrapped: they are there to be copied
        console.print(_encodable(line, console), style="bold", soft_wrap=True, **_PLAIN)


def _headline(summary: Summary) -> list[RenderableType]:
    rate = summary.rate
    line = Text(f"{summary.verdict.upper()}  ", style=STYLES.get(summary.verdict, "bold yellow"))
    line.append(headline(summary), style="bold")
    code = "" if summary.exit_code is None else f", exit {summary.exit_code}"
    lines = [line, Text(f"{summary.scenario}, seed {summary.seed}{code}", style="dim")]
    meaning = "" if summary.verdict in ("clean", "anomaly") else summary.meaning
    why = f"{summary.why.removesuffix('.')}." if summary.why else ""
    sentences = [summary.error, meaning, why, cluster_text(rate) if rate.count else ""]
    if any(sentences):
        lines.append(Text(" ".join(each for each in sentences if each)))
    return [*lines]


class _Funnel:
    """The funnel as a table: bars where there is room for them, "-" for a stage that is unknown."""

    def __init__(self, summary: Summary) -> None:
        self._summary = summary

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column()
        table.add_column(justify="right")
        wide = options.max_width >= NARROW_CELLS
        block = "#" if options.ascii_only else "\u2588"
        most = max((stage.count or 0 for stage in self._summary.funnel), default=0)
        for number, stage in enumerate(self._summary.funnel):
            count = "-" if stage.count is None else f"{stage.count:,}"
            bar = Text(block * _cells(stage.count, most), style="red" if number > 1 else "dim")
            table.add_row(stage.label, count, *([bar] if wide else []))
        yield table
        sentences = [compared_text(self._summary), model_own_text(self._summary)]
        if any(sentences):
            yield Text(" ".join(each for each in sentences if each), style="dim")


def _cells(count: int | None, most: int) -> int:
    if not count or not most:
        return 0
    return max(1, round(BAR_CELLS * count / most))


def _causes(groups: Sequence[Kind]) -> Table:
    """Return what was found, one line a cause: hundreds of findings of one cause are one bug."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for group in groups[:CAUSES_MAX]:
        table.add_row(f"{group.count:,} x", group.detector, group.title)
    if len(groups) > CAUSES_MAX:
        table.add_row("", "", f"and {len(groups) - CAUSES_MAX} more kinds of finding in the report")
    return table


def _finding(best: Finding, summary: Summary, records: list[RequestRecord]) -> list[RenderableType]:
    title = Text("For example", style="bold")
    parts: list[RenderableType] = [title, Text(story(best, wrong_reads(summary.groups)))]
    if edge := missing_edge(best):
        parts.append(Text.assemble(("Missing edge: ", "bold red"), edge))
    answers = _comparison(best, summary, records)
    return [*parts, "", *answers] if answers else parts


def _comparison(best: Finding, summary: Summary, records: list[RequestRecord]) -> list[RenderableType]:
    """Return an answer beside the clean one: one that looks wrong if there is any, else that of the best finding."""
    by_request = {record.request: record for record in records}
    diverged = [each for group in summary.groups if group.layer == "divergence" for each in group.examples]
    looks_wrong = [
        finding for finding in diverged if finding.request in by_request and by_request[finding.request].visible
    ]
    same_request = [finding for finding in diverged if finding.request == best.request]
    for finding in [*looks_wrong, *same_request, best, *diverged]:
        record = by_request.get(finding.request)
        comparison = compare(finding, record)
        if comparison is not None and not comparison.equal:
            parts = _answers(finding.request, comparison, "alone" if summary.url else "clean")
            return parts if record is None or not record.visible else [*parts, *_looks(record, summary)]
    return []


def _looks(record: RequestRecord, summary: Summary) -> list[RenderableType]:
    """Return how an answer ends that looks wrong, and what the text detectors say of it."""
    ending = Text()
    _append(ending, "".join(record.text.splitlines(keepends=True)[-ENDING_LINES_MAX:])[-ENDING_CHARACTERS_MAX:], "red")
    claims = [
        f"{each.detector}: {each.claim}"
        for group in summary.groups
        if group.layer == "text"
        for each in group.examples
        if each.request == record.request
    ]
    return [Text("it ends:", style="bold"), Padding(_first_lines(ending), (0, 0, 0, 2)), *map(Text, claims)]


def _answers(request: str, comparison: Comparison, undisturbed: str) -> list[RenderableType]:
    clean, got = Text(), Text()
    for text in (clean, got):
        before = comparison.before.splitlines(keepends=True)[-SNIPPET_BEFORE_LINES_MAX:]
        _append(text, "".join(before), "dim")
    _append(clean, comparison.clean, "green")
    _append(got, comparison.wrong, "bold red reverse")
    _append(got, comparison.got, "red")
    parts: list[RenderableType] = [Text(f"Request {request}")]
    if comparison.note:
        parts.append(Text(comparison.note, style="dim"))
    for name, text in ((undisturbed, clean), ("got", got)):
        parts += [Text(f"{name}:", style="bold"), Padding(_first_lines(text), (0, 0, 0, 2))]
    return parts


def _append(text: Text, content: str, style: str) -> None:
    for piece in pieces(content):
        text.append(piece.text, style=f"{style} underline" if piece.escape else style)


def _first_lines(text: Text) -> Text:
    lines = text.split("\n", allow_blank=False)
    snippet = Text("\n").join(
        line if len(line) <= 400 else line[:400] + Text("...") for line in lines[:SNIPPET_LINES_MAX]
    )
    return snippet + Text("\n...") if len(lines) > SNIPPET_LINES_MAX else snippet


def _facts(summary: Summary) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, fault in summary.faults.items():
        did = f"changed an order {fault.reordered:,} times"
        if fault.changed:
            did = f"changed bytes {fault.changed:,} times: {fault.read:,} of them read, {fault.detected:,} detected"
        table.add_row("fault", f"{name}: reached {fault.reached:,}, fired {fault.fired:,}, {did}")
    if summary.exercised:
        did = ", ".join(f"{count:,} {exercise_label(name)}" for name, count in summary.exercised.items())
        table.add_row("exercised", did)
    if summary.ttft_ms:
        p50, p90, p99 = summary.ttft_ms.p50, summary.ttft_ms.p90, summary.ttft_ms.p99
        ttft = f"p50 {p50:,.1f} ms, p90 {p90:,.1f}, p99 {p99:,.1f}"
        lag = f"; the client sent p99 {summary.lag_ms.p99:,.1f} ms late" if summary.lag_ms else ""
        table.add_row("first token", ttft + lag)
        if lag := loop_lag_text(summary):
            table.add_row("client lag", lag)
    if summary.cut.requests:
        table.add_row("cut", cut_text(summary.cut))
    if summary.retries.aborted_retried:
        table.add_row("retries", retries_text(summary.retries))
    for row in _silent(summary.detectors):
        table.add_row(*row)
    return table


def _silent(detectors: Mapping[str, DetectorAnswer]) -> list[tuple[str, str]]:
    """Return the detectors that gave no answer about this target, those of one reason together."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for name, row in detectors.items():
        if row.answer in ("not_applicable", "unknown"):
            reasons.setdefault((row.answer.replace("_", " "), row.why), []).append(name)
    return [(answer, f"{', '.join(names)}{f': {why}' if why else ''}") for (answer, why), names in reasons.items()]


def _places(summary: Summary, report: str) -> list[str]:
    command = replay_command(summary)
    lines = [f"replay: {command}"] if command else []
    return [*lines, f"report: {report}"] if report else [*lines, f"run: {summary.path}"]


def _print(content: RenderableType, console: Console) -> None:
    if console.encoding.lower().startswith("utf"):
        console.print(content, **_PLAIN)
        return
    # An old terminal's encoding must not end the run with an error.
    with console.capture() as capture:
        console.print(content, **_PLAIN)
    console.print(Text.from_ansi(_encodable(capture.get(), console)), **_PLAIN)


def _encodable(text: str, console: Console) -> str:
    return text.encode(console.encoding, "backslashreplace").decode(console.encoding)
