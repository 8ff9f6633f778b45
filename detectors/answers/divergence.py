"""Answers that differ from the clean decode of the same prompt (evidence layer 3)."""

from collections.abc import Iterable

import msgspec

from detectors.base import Answer, DetectorVerdict, Finding
from detectors.evidence import WrongToken

DIVERGENCE = "divergence"  # the detector's name
NEAR_TIE_LOGITS = 1e-3  # closer than this, another machine's rounding may choose the other token


class AnswerPair(msgspec.Struct, frozen=True):
    """An answer and the clean one of the same prompt. `first_difference` is -1 where they are the same."""

    request: str
    at_us: float
    first_difference: int
    logit_gap: float
    got: str
    clean: str


def divergence(compared: Iterable[AnswerPair], *, asked: int) -> DetectorVerdict:
    """Return the verdict over the answers that were decoded again; `asked` of them were wanted."""
    answers = list(compared)
    findings: list[Finding] = []
    different = [answer for answer in answers if answer.first_difference >= 0]
    for answer in different:
        near = answer.logit_gap < NEAR_TIE_LOGITS
        claim = f"{answer.request}: token {answer.first_difference} is not what the model says on a clean cache"
        claim += f" (logit gap {answer.logit_gap:.3f}{', a near-tie' if near else ''})"
        evidence = WrongToken(answer.request, answer.first_difference, answer.logit_gap, answer.got, answer.clean)
        signature = "divergence: the answer differs from the clean decode"
        findings.append(Finding(DIVERGENCE, "divergence", claim, signature, answer.request, answer.at_us, 1, evidence))
    verdict: Answer = "anomaly" if findings else ("clean" if answers else "unknown")
    why = "" if len(answers) == asked else f"{asked - len(answers)} of {asked} answers could not be decoded again"
    if not asked:
        why = "there was no answer to decode again"
    if why and not findings:
        verdict = "unknown"
    return DetectorVerdict(DIVERGENCE, verdict, tuple(findings), why, len(answers))
