"""A server's answers against what it answers undisturbed: alone after the load, and on a clean cache."""

from collections.abc import Sequence
from dataclasses import dataclass

from detectors.answers.acceptance import Acceptance
from detectors.answers.clean_cache import ORACLES, Calibration, clean_cache
from detectors.base import DetectorVerdict
from repro.load.again import AskedAgain
from repro.record.checks import Check
from repro.record.requests import SpecCounts
from repro.run.judge.marks import acceptance_verdict, clean_answer_looks_wrong, leak_verdict, looks_wrong, text_verdicts
from repro.run.recorder import Recorder

NOT_ASKED = "{} suspect answer(s) could not be asked for again"
NOT_FLUSHED = (
    "{} suspect answer(s) look wrong when asked for again, alone, too. The server did not drop its cache "
    "(POST /flush_cache), so that is either the model's own or a corrupted prefix"
)


@dataclass(frozen=True)
class CleanCacheRules:
    """How a server's answers are judged by its second answers on a clean cache."""

    calibration: Calibration
    false_alarm_rate: float  # per answer and oracle


def judge_asked_again(recorder: Recorder, again: AskedAgain) -> list[DetectorVerdict]:
    """Judge suspects by the server's lone answers: if the cache was dropped, wrong there too is the model's own."""
    for record in recorder.records:
        if not record.detectors or record.request not in again.texts:
            continue
        record.clean_text = again.texts[record.request]
        looks_wrong_too = clean_answer_looks_wrong(record, recorder)
        if record.finish == "abort":  # the client gave it up: its beginning is compared
            record.clean_text = record.clean_text[: len(record.text)]
        same = record.clean_text == record.text
        repeats = same or looks_wrong_too
        if again.flushed or not repeats:
            record.oracle = "same" if same else "other"
            record.model_own, record.visible = (repeats, not repeats) if looks_wrong(record) else (False, False)
    why = "a server at a URL has no clean decode of ours to compare with"
    why_unknown = NOT_ASKED if again.flushed or not again.texts else NOT_FLUSHED
    return [
        DetectorVerdict("divergence", "not_applicable", (), why),
        _acceptance(recorder, again, why_unknown),
        *text_verdicts(recorder, why_unknown),
        leak_verdict(recorder),
    ]


def judge_clean_cache(recorder: Recorder, checks: Sequence[Check], rules: CleanCacheRules) -> list[DetectorVerdict]:
    """Judge answers by the server's checks on a clean cache, and mark the requests that were checked."""
    finished_us = {record.request: record.finished_us for record in recorder.records}
    verdicts = [
        clean_cache(oracle, checks, rules.calibration, rules.false_alarm_rate, at_us=finished_us.__getitem__)
        for oracle in ORACLES
    ]
    guilty = {finding.request for verdict in verdicts if verdict.answer == "anomaly" for finding in verdict.findings}
    by_request = {check.request: check for check in checks}
    for record in recorder.records:
        check = by_request.get(record.request)
        if check is None or check.gap is None:
            continue
        record.first_difference, record.logit_gap, record.clean_text = check.first_difference, check.gap, check.text
        if check.first_difference < 0:
            record.oracle = "same"
        else:
            record.oracle = "diverged" if record.request in guilty else "other"
    return verdicts


def _acceptance(recorder: Recorder, again: AskedAgain, why_unknown: str) -> DetectorVerdict:
    """Judge odd acceptance as odd texts are judged: as odd alone, on a dropped cache, is the model's own."""
    findings = recorder.acceptance_findings
    tokens_enough = recorder.acceptance.tokens_judged  # a short answer has not shown that it is not as odd
    repeats = {
        finding.request: _is_odd(recorder, counts)
        for finding in findings
        if (counts := again.counts.get(finding.request)) and counts[-1].completion_tokens >= tokens_enough
    }
    unexcused = [finding for finding in findings if not (again.flushed and repeats.get(finding.request))]
    sure = [finding for finding in unexcused if repeats.get(finding.request) is False]
    return acceptance_verdict(recorder, sure, why_unknown.format(len(unexcused)) if unexcused and not sure else "")


def _is_odd(recorder: Recorder, counts: Sequence[SpecCounts]) -> bool:
    detector = Acceptance(recorder.acceptance)
    return any([*(detector.feed(each) for each in counts), detector.close()])
