"""What the detectors and the oracle say about a run: marks on its requests, and an answer each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from detectors.answers.acceptance import Acceptance
from detectors.answers.clean_cache import ORACLES, Calibration, clean_cache
from detectors.answers.divergence import divergence
from detectors.answers.leak import CrossPromptLeak
from detectors.base import Answer, Finding, Marks, Verdict
from repro.load.again import AskedAgain
from repro.record.checks import Check
from repro.record.requests import RequestRecord, SpecCounts
from repro.run.judge.clean_decode import CleanDecoder
from repro.run.judge.compare import compare, to_decode
from repro.run.judge.online import TEXT_DETECTORS, TextJudges, shown
from repro.run.limits import LimitWatch
from repro.run.recorder import Observed
from repro.run.targets import BundledTarget, ServerTarget

NOT_DECODED = "{} suspect answer(s) were not decoded again"
NOT_TOLD = "the target tells no counts of speculative decoding (meta_info; SGLang has them on /generate only)"
NOT_ASKED = "{} suspect answer(s) could not be asked for again"
NOT_FLUSHED = (
    "{} suspect answer(s) look wrong when asked for again, alone, too. The server did not drop its cache "
    "(POST /flush_cache), so that is either the model's own or a corrupted prefix"
)


@dataclass(frozen=True)
class ClosedOracle:
    """How a server's answers are judged by what it says of them on a clean cache."""

    calibration: Calibration
    false_alarm_rate: float  # of an answer, for each of the oracles


def verdicts_of(
    observed: Observed,
    target: BundledTarget | ServerTarget,
    judges: TextJudges,
    *,
    sample: int,
    seed: int,
    progress: Callable[[int, int], None],
    closed: ClosedOracle | None = None,
) -> list[Verdict]:
    """Mark the requests with what the detectors say, ask the oracle, and return all answers."""
    observed.show()
    verdicts = [detector.verdict() for detector in observed.event_detectors]
    for marks in (verdict.marks for verdict in verdicts):
        _mark(observed.records, marks)
    if isinstance(target, ServerTarget):
        verdicts += _of_server(observed, target.said_again, judges)
        return verdicts if closed is None else verdicts + _of_clean_cache(observed, target.checks.done, closed)
    acceptance = _acceptance(observed, observed.acceptance_findings, "")
    if target.checkpoint.model.weights is None:
        why = "numerics = stamps moves no tensors: there is no answer to compare"
        silent = [Verdict(name, "not_applicable", (), why) for name in (*TEXT_DETECTORS, CrossPromptLeak.name)]
        return [*verdicts, Verdict("divergence", "not_applicable", (), why), acceptance, *silent]
    wanted = to_decode(observed.records, sample, seed)
    verdicts.append(_ask_oracle(wanted, target, observed.limits, progress))
    for record in wanted:
        if _looks_wrong(record) and record.oracle:
            record.model_own = record.oracle == "same" or _repeats(record, observed, judges)
            record.visible = not record.model_own
    return [*verdicts, acceptance, *_text_verdicts(observed, NOT_DECODED), _leak(observed, judges)]


def _mark(records: Sequence[RequestRecord], marks: Marks) -> None:
    """Add what one detector of events knows of the requests."""
    for record in records:
        record.raced |= record.request in marks.raced
        record.corrupted |= record.request in marks.corrupted
        record.poisoned |= record.request in marks.poisoned
        record.origin = marks.poisoned.get(record.request, record.origin)


def _looks_wrong(record: RequestRecord) -> bool:
    """Return whether a detector convicts the text for its looks, so that the clean answer may share the blame."""
    return any(name in TEXT_DETECTORS for name in record.detectors)


def _ask_oracle(
    wanted: list[RequestRecord], target: BundledTarget, limits: LimitWatch, progress: Callable[[int, int], None]
) -> Verdict:
    model = target.checkpoint.model
    assert model.weights is not None
    decoder = CleanDecoder(model.weights, target.config.context_tokens, model.eos)

    def text(tokens: Sequence[int]) -> str:
        return shown(target.checkpoint.encoder.decode([token for token in tokens if token not in model.eos]))

    compared = compare(wanted, target.kept.requests, decoder, text, limits, progress)
    return divergence(compared, asked=len(wanted))


def _of_server(observed: Observed, again: AskedAgain, judges: TextJudges) -> list[Verdict]:
    """Judge suspects by what the server says alone: wrong there too is the model's own, if the cache was dropped."""
    for record in observed.records:
        if not record.detectors or record.request not in again.texts:
            continue
        record.clean_text = again.texts[record.request]
        looks_wrong_too = _repeats(record, observed, judges)
        if record.finish == "abort":  # given up by us: compared as far as it had come
            record.clean_text = record.clean_text[: len(record.text)]
        same = record.clean_text == record.text
        repeats = same or looks_wrong_too
        if again.flushed or not repeats:
            record.oracle = "same" if same else "other"
            record.model_own, record.visible = (repeats, not repeats) if _looks_wrong(record) else (False, False)
    why = "a server at a URL has no clean decode of ours to compare with"
    unsure = NOT_ASKED if again.flushed or not again.texts else NOT_FLUSHED
    return [
        Verdict("divergence", "not_applicable", (), why),
        _acceptance_of_server(observed, again, unsure),
        *_text_verdicts(observed, unsure),
        _leak(observed, judges),
    ]


def _of_clean_cache(observed: Observed, checks: Sequence[Check], closed: ClosedOracle) -> list[Verdict]:
    """Judge answers by the server's own word on a clean cache, and mark those that were checked."""
    finished_us = {record.request: record.finished_us for record in observed.records}
    verdicts = [
        clean_cache(oracle, checks, closed.calibration, closed.false_alarm_rate, at_us=finished_us.__getitem__)
        for oracle in ORACLES
    ]
    guilty = {finding.request for verdict in verdicts if verdict.answer == "anomaly" for finding in verdict.findings}
    by_request = {check.request: check for check in checks}
    for record in observed.records:
        check = by_request.get(record.request)
        if check is None or check.gap is None:
            continue
        record.first_difference, record.logit_gap, record.clean_text = check.first_difference, check.gap, check.text
        other: Literal["same", "other"] = "same" if check.first_difference < 0 else "other"
        record.oracle = "diverged" if record.request in guilty and other == "other" else other
    return verdicts


def _acceptance_of_server(observed: Observed, again: AskedAgain, unsure: str) -> Verdict:
    """Judge odd acceptance as odd texts are judged: what is as odd alone, on a dropped cache, is the model's own."""
    alone = {finding.request: again.counts.get(finding.request, []) for finding in observed.acceptance_findings}
    enough = observed.acceptance.tokens_judged  # a short answer has not shown that it is not as odd
    repeats = {
        request: _odd(observed, counts)
        for request, counts in alone.items()
        if counts and counts[-1].completion_tokens >= enough
    }
    open_ones = [f for f in observed.acceptance_findings if not (again.flushed and repeats.get(f.request))]
    sure = [finding for finding in open_ones if repeats.get(finding.request) is False]
    return _acceptance(observed, sure, unsure.format(len(open_ones)) if open_ones and not sure else "")


def _odd(observed: Observed, counts: Sequence[SpecCounts]) -> bool:
    detector = Acceptance(observed.acceptance)
    return any([*(detector.feed(each) for each in counts), detector.close()])


def _acceptance(observed: Observed, sure: Sequence[Finding], unsure: str) -> Verdict:
    """Return the acceptance detector's answer, `sure` being the findings that convict and `unsure` why others don't.

    Where no answer can be judged for want of counts, length or a fitting profile, that is unknown if the detector
    was asked for, and else it does not apply.
    """
    rules, name = observed.acceptance, Acceptance.name
    convicted = {finding.request for finding in sure}
    for record in observed.records:
        record.acceptance = record.request in convicted
    told = [record for record in observed.records if record.spec_verify_ct]
    blind: Answer = "unknown" if rules.required else "not_applicable"
    judged = [record for record in told if record.completion_tokens >= rules.tokens_judged]
    if sure:
        return Verdict(name, "anomaly", tuple(sure), checked=len(judged))
    if not judged:
        why = f"no answer reached the {rules.tokens_judged} tokens that it takes to judge" if told else NOT_TOLD
        return Verdict(name, blind, (), why)
    unfit = [why for record in judged if (why := rules.unfit(record.spec))]
    if len(unfit) == len(judged):
        return Verdict(name, blind, (), unfit[0])
    missing = [r for r in observed.records if not r.spec_verify_ct and r.completion_tokens >= rules.tokens_judged]
    if unfit or missing:
        unsure = f"{len(unfit)} answer(s): {unfit[0]}" if unfit else f"{len(missing)} answer(s) came without counts"
    return Verdict(name, "unknown" if unsure else "clean", (), unsure, len(judged))


def _repeats(record: RequestRecord, observed: Observed, judges: TextJudges) -> bool:
    """Return whether a detector that convicts the answer convicts the undisturbed one too."""
    own = judges.convicting(observed.prompts[record.request], record.clean_text, record.clean_tokens)
    return any(name in own for name in record.detectors)


def _leak(observed: Observed, judges: TextJudges) -> Verdict:
    """Return the leak detector's answer: no undisturbed answer can excuse a nonce that was not in the prompt."""
    name = CrossPromptLeak.name
    if judges.nonces is None:
        return Verdict(name, "not_applicable", (), "no session of this load carries a nonce to know it by")
    found = tuple(finding for finding in observed.text_findings if finding.detector == name)
    leaked = {finding.request for finding in found}
    for record in observed.records:
        record.visible = record.visible or record.request in leaked
    return Verdict(name, "anomaly" if found else "clean", found, checked=len(observed.records))


def _text_verdicts(observed: Observed, unsure: str) -> list[Verdict]:
    """Return the text detectors' answers; what is the model's own convicts nobody.

    A suspect that the oracle was not asked about is unknown; `unsure` says why, with a place for the count.
    """
    own = {record.request for record in observed.records if record.model_own}
    asked = {record.request for record in observed.records if record.oracle}
    verdicts = []
    for name in TEXT_DETECTORS:
        found = [f for f in observed.text_findings if f.detector == name and f.request not in own]
        sure = tuple(f for f in found if f.request in asked)
        why = unsure.format(len(found)) if found and not sure else ""
        answer: Answer = "anomaly" if sure else "unknown" if found else "clean"
        verdicts.append(Verdict(name, answer, sure, why, len(observed.records)))
    return verdicts
