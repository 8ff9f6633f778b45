"""Answers of the detectors that every target has, and their marks on the requests."""

from collections.abc import Sequence

from detectors.answers.acceptance import Acceptance
from detectors.answers.leak import CrossPromptLeak
from detectors.base import Answer, DetectorVerdict, Finding
from detectors.registry import TEXT_NAMES
from repro.record.requests import RequestRecord
from repro.run.recorder import Recorder

NO_COUNTS = "the target tells no counts of speculative decoding (meta_info; SGLang has them on /generate only)"


def event_verdicts(recorder: Recorder) -> list[DetectorVerdict]:
    """Return the answers of the detectors of events, and mark the requests that they name."""
    recorder.feed_detectors()
    verdicts = [detector.verdict() for detector in recorder.event_detectors]
    for marks in (verdict.marks for verdict in verdicts):
        for record in recorder.records:
            record.raced |= record.request in marks.raced
            record.corrupted |= record.request in marks.corrupted
            record.poisoned |= record.request in marks.poisoned
            record.origin = marks.poisoned.get(record.request, record.origin)
    return verdicts


def looks_wrong(record: RequestRecord) -> bool:
    """Return whether a detector convicts the text for its looks, so that the clean answer may share the blame."""
    return any(name in TEXT_NAMES for name in record.detectors)


def clean_answer_looks_wrong(record: RequestRecord, recorder: Recorder) -> bool:
    """Return whether a detector that convicts the answer convicts the undisturbed one too."""
    prompt = recorder.prompts[record.request]
    names = recorder.answer_detectors.convicting(prompt, record.clean_text, record.clean_tokens)
    return any(name in names for name in record.detectors)


def text_verdicts(recorder: Recorder, why_unknown: str) -> list[DetectorVerdict]:
    """Return the text detectors' answers; a text that the clean decode has too convicts no request.

    A suspect that was not asked for again is unknown; `why_unknown` says why, with a place for the count.
    """
    excused = {record.request for record in recorder.records if record.model_own}
    asked = {record.request for record in recorder.records if record.oracle}
    verdicts = []
    for name in TEXT_NAMES:
        found = [f for f in recorder.text_findings if f.detector == name and f.request not in excused]
        sure = tuple(f for f in found if f.request in asked)
        why = why_unknown.format(len(found)) if found and not sure else ""
        answer: Answer = "anomaly" if sure else "unknown" if found else "clean"
        verdicts.append(DetectorVerdict(name, answer, sure, why, len(recorder.records)))
    return verdicts


def leak_verdict(recorder: Recorder) -> DetectorVerdict:
    """Return the leak detector's answer: no undisturbed answer can excuse a nonce that was not in the prompt."""
    name = CrossPromptLeak.name
    if recorder.answer_detectors.nonces is None:
        return DetectorVerdict(name, "not_applicable", (), "no session of this load carries a nonce to know it by")
    found = tuple(finding for finding in recorder.text_findings if finding.detector == name)
    leaked = {finding.request for finding in found}
    for record in recorder.records:
        record.visible = record.visible or record.request in leaked
    return DetectorVerdict(name, "anomaly" if found else "clean", found, checked=len(recorder.records))


def acceptance_verdict(recorder: Recorder, sure: Sequence[Finding], why_unknown: str) -> DetectorVerdict:
    """Return the acceptance detector's answer: `sure` findings convict, `why_unknown` says why others do not.

    Without an answer that has counts, length and a fitting profile, that is unknown if the detector was asked for;
    else it does not apply.
    """
    rules, name = recorder.acceptance, Acceptance.name
    convicted = {finding.request for finding in sure}
    for record in recorder.records:
        record.acceptance = record.request in convicted
    counted = [record for record in recorder.records if record.spec_verify_ct]
    blind: Answer = "unknown" if rules.required else "not_applicable"
    judged = [record for record in counted if record.completion_tokens >= rules.tokens_judged]
    if sure:
        return DetectorVerdict(name, "anomaly", tuple(sure), checked=len(judged))
    if not judged:
        why = f"no answer reached the {rules.tokens_judged} tokens that it takes to judge" if counted else NO_COUNTS
        return DetectorVerdict(name, blind, (), why)
    unfit = [why for record in judged if (why := rules.unfit(record.spec))]
    if len(unfit) == len(judged):
        return DetectorVerdict(name, blind, (), unfit[0])
    missing = [r for r in recorder.records if not r.spec_verify_ct and r.completion_tokens >= rules.tokens_judged]
    if unfit:
        why_unknown = f"{len(unfit)} answer(s): {unfit[0]}"
    elif missing:
        why_unknown = f"{len(missing)} answer(s) came without counts"
    return DetectorVerdict(name, "unknown" if why_unknown else "clean", (), why_unknown, len(judged))
