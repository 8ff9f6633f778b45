"""A finding in words: which operations raced, over which page, and which edge was missing."""

import shlex
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from detectors.base import Finding
from detectors.evidence import Operation, PagePair
from reports.run.summary import Group, Summary
from repro.base.probe import OpRef

REPLAY_OPTIONS = {
    "sessions": "--sessions",
    "concurrency": "--concurrency",
    "scale_tokens": "--scale-tokens",
    "time_scale": "--time-scale",
    "answer_tokens_max": "--answer-tokens",
    "history": "--history",
    "on_anomaly": "--on-anomaly",
    "anomaly_retries_max": "--anomaly-retries",
}
NO_READS: Mapping[OpRef, Finding] = MappingProxyType({})


def wrong_reads(groups: Sequence[Group]) -> dict[OpRef, Finding]:
    """Return the canary's examples by the operation that read wrong bytes."""
    canaries = [finding for group in groups if group.layer == "canary" for finding in group.examples]
    sides = [(side, finding) for finding in canaries for side in finding.evidence.operations]
    return {(side.stream, side.index): finding for side, finding in reversed(sides)}  # the first one stays


def best_finding(groups: Sequence[Group]) -> Finding | None:
    """Return the finding to show first: a race that was seen to do harm, else the most frequent."""
    reads = wrong_reads(groups)
    ranked = sorted(groups, key=lambda group: (-_weight(lead_example(group, reads), reads), -group.count))
    return lead_example(ranked[0], reads) if ranked else None


def lead_example(group: Group, reads: Mapping[OpRef, Finding] = NO_READS) -> Finding:
    """Return the example with the most evidence: its read got wrong bytes, or its operations overlapped."""
    return max(group.examples, key=lambda finding: _weight(finding, reads))  # the first of equals


def _weight(finding: Finding, reads: Mapping[OpRef, Finding]) -> int:
    evidence, sides = finding.evidence, finding.evidence.operations
    together = _overlap_us(sides) > 0 or (isinstance(evidence, PagePair) and evidence.inverted)
    return len(sides) + together + 2 * (_wrong_read(finding, reads) is not None)


def _wrong_read(finding: Finding, reads: Mapping[OpRef, Finding]) -> Finding | None:
    """Return the canary's finding that an operation of this race read wrong bytes for its request, None without one."""
    if not isinstance(finding.evidence, PagePair):
        return None
    seen = [reads[ref] for side in finding.evidence.operations if (ref := (side.stream, side.index)) in reads]
    return next((canary for canary in seen if canary.request == finding.request), None)


def _overlap_us(sides: Sequence[Operation]) -> float:
    spans = [side.span_us for side in sides if side.span_us is not None]
    if len(spans) < 2:
        return 0.0
    return min(end for _, end in spans) - max(start for start, _ in spans)


def story(finding: Finding, reads: Mapping[OpRef, Finding] = NO_READS) -> str:
    """Return the finding as a few sentences; `reads` are the wrong ones, by operation."""
    if not isinstance(finding.evidence, PagePair):
        return _sentence(finding.claim)
    seen = _wrong_read(finding, reads)
    return _race(finding.evidence) + (f" The canary saw what came of it: {_sentence(seen.claim)}" if seen else "")


def missing_edge(finding: Finding) -> str:
    """Return what would have ordered the two operations of a race; "" for a finding that is none."""
    return _sentence(finding.evidence.missing_edge) if isinstance(finding.evidence, PagePair) else ""


def _race(pair: PagePair) -> str:
    earlier, later = pair.operations
    layer = f", layer {pair.layer}" if pair.layer >= 0 else ""
    return (
        f"{earlier.label} on stream {earlier.stream} {earlier.verb} the {pair.component} rows of page "
        f"{pair.page}{layer}{_span(earlier)}. "
        f"{later.label} on stream {later.stream} {later.verb} them{_span(later)}{_relation(earlier, later)}."
    )


def _span(side: Operation) -> str:
    if side.span_us is None:
        return ""
    return f" from {time_text(side.span_us[0])} to {time_text(side.span_us[1])}"


def _relation(earlier: Operation, later: Operation) -> str:
    """`earlier` is the one that should have ended first."""
    if earlier.span_us is None or later.span_us is None:
        return ""
    (begins_us, ends_us), (start_us, end_us) = earlier.span_us, later.span_us
    if end_us <= begins_us:
        return f": enqueued later, it had ended {time_text(begins_us - end_us)} before {earlier.label} began"
    if start_us < ends_us:
        return f", {time_text(ends_us - start_us)} before {earlier.label} has finished"
    gap = time_text(start_us - ends_us)
    return f", {gap} later; in this schedule they did not overlap, but nothing keeps them apart"


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


def time_text(us: float) -> str:
    """Return a virtual time with its unit, exact to the microsecond however late it is."""
    if abs(us) < 1000:
        return f"{round(us, 3):,g} us"
    if abs(us) < 10_000:
        return f"{us:,.1f}".removesuffix(".0") + " us"
    return f"{us / 1e3:,.3f} ms"


def replay_command(summary: Summary) -> str:
    """Return the command that replays the run; "" when there is none.

    A token names a bundled scenario by its hash, so a scenario of the user's own is found by its folder. A
    server at a URL answers in its own time: there the same load is sent again.
    """
    if summary.url:
        return _replay_again(summary)
    target = summary.token if summary.token and summary.bundled else summary.path
    return f"repro reproduce {target}" if target else ""


def _replay_again(summary: Summary) -> str:
    load = summary.load
    traces = load.get("trace", ())
    words = ["repro", "replay", *([traces] if isinstance(traces, str) else traces), "--target", summary.url]
    words += ["--api", summary.api] if summary.api != "chat" else []
    for key, option in REPLAY_OPTIONS.items():
        words += [option, load[key]] if key in load else []
    words += [*summary.checking, *(["--nonces"] if load.get("nonces") else [])]
    for key, value in summary.acceptance.items():
        words += ["--acceptance", f"{key}={value}"]
    return shlex.join(map(str, [*words, "--seed", summary.seed]))
