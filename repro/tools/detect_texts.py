"""`repro detect FILE...`: the text detectors on answers that people already have."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from detectors.answers.leak import CrossPromptLeak, Nonces
from detectors.base import Finding
from detectors.registry import TEXT_NAMES, text_detectors
from repro.base.verdict_word import VerdictWord
from repro.record.redact import redacted_finding
from repro.tools.saved_answers import Saved, read_answers

FINDINGS_MAX = 1000  # kept with their evidence; the counts go on


class FoundAt(msgspec.Struct, frozen=True):
    """A finding and where its answer stands."""

    where: str
    id: str
    finding: Finding


class DetectedAnswers(msgspec.Struct, frozen=True):
    """What `--json` prints. Vacuous: there was no answer to judge.

    Nobody knows here what the model says undisturbed: a model that loops by itself is found as well.
    """

    verdict: VerdictWord
    answers: int
    with_prompt: int
    unanswered: int
    characters: int
    detectors: dict[str, int]  # answers that each convicts
    findings: list[FoundAt]


def detect_answers(paths: Sequence[Path], *, redact: bool = False) -> DetectedAnswers:
    """Judge the answers in these files; `redact` leaves their texts out of the findings.

    Raises UsageError for what is no file of answers (`repro.tools.saved_answers` says which forms are read).
    """
    read = read_answers(paths)
    nonces = Nonces({each.session: each.nonce for each in read.saved if each.session and each.nonce})
    convicted = dict.fromkeys((*TEXT_NAMES, CrossPromptLeak.name) if nonces else TEXT_NAMES, 0)
    findings: list[FoundAt] = []
    for saved in read.saved:
        found = judge(saved, nonces)
        for name in dict.fromkeys(finding.detector for finding in found):
            convicted[name] += 1
        kept = [redacted_finding(finding) if redact else finding for finding in found]
        findings += [FoundAt(saved.where, saved.id, finding) for finding in kept[: FINDINGS_MAX - len(findings)]]
    word = VerdictWord.CLEAN if read.saved else VerdictWord.VACUOUS
    if any(convicted.values()):
        word = VerdictWord.ANOMALY
    return DetectedAnswers(
        verdict=word,
        answers=len(read.saved),
        with_prompt=sum(bool(each.prompt) for each in read.saved),
        unanswered=read.unanswered,
        characters=sum(len(each.text) for each in read.saved),
        detectors=convicted,
        findings=findings,
    )


def judge(saved: Saved, nonces: Nonces | None = None) -> list[Finding]:
    """Return what the text detectors find in one answer."""
    leak = [CrossPromptLeak(f"{saved.prompt} {saved.nonce}", nonces)] if nonces else []
    looks = (*text_detectors(saved.prompt, None), *leak)
    found = [each for look in looks for each in (look.feed(saved.text, (), saved.logprobs), look.close())]
    return [finding for finding in found if finding is not None]
