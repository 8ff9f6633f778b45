"""Judges a server's answers by what the server itself says of them on a cache that holds nothing of the load.

Three oracles for a server of which nothing is known but its URL; all want greedy answers and log-probabilities:

- *rerun*: the prompt again. Where the answers first differ, how much likelier does the server now find its own
  token? Rounding flips tokens that were nearly as likely as each other; a corrupted cache says what is out of the
  question.
- *surprisal*: the answer sent back as a prompt. A greedy answer is made of the likeliest tokens; how far behind
  the likeliest is each of its tokens, in nats? The worst stretch of STRETCH_TOKENS is what an answer is judged by.
- *confidence*: the same once more. How far are the log-odds of each of its tokens, log p / (1 - p), from those that
  came with the answer? Rounding moves a token's logit by about as much whatever its p, so log-odds are compared,
  as far as single precision tells them (LOG_ODDS_MAX). A corrupted cache moves those of all tokens behind it, also
  where each is still the likeliest. The root of the summed squares over CONFIDENCE_TOKENS is the score.

How far healthy answers go is learned from the server itself, at a gentle load (`repro calibrate`): of n clean
answers the next one passes the r-th largest score with probability r / (n + 1), whatever the distribution. So the
false-alarm rate is a choice, and the smallest one is a matter of n.
"""

from collections.abc import Callable, Sequence
from math import ceil, expm1, log, sqrt
from pathlib import Path
from typing import Literal

import msgspec

from detectors.base import Answer, DetectorVerdict, Finding
from detectors.evidence import ConfidenceScore, Evidence, RerunScore, SurprisalScore
from repro.base.errors import UsageError
from repro.base.json_file import read_struct
from repro.record.checks import Check

Oracle = Literal["rerun", "surprisal", "confidence"]
ORACLES: tuple[Oracle, ...] = ("rerun", "surprisal", "confidence")

FALSE_ALARM_RATE = 0.001  # one answer's rate, for each oracle
STRETCH_TOKENS = 8
CONFIDENCE_TOKENS = 32
LOG_ODDS_MAX = 5.0  # p = 0.993; the last digit of a log-probability in single precision is 0.0003 nats of it there
RESOLUTION_NATS = 0.01  # rounding of all log-probabilities adds at most this
SCORE_DIGITS = 6

# A score of at least so many nats, and so many times the largest of the clean ones, is no matter of chance any more:
# rounding errors have no such tail. Any other conviction must not be one of those that the rate lets pass.
DECISIVE_NATS = 3.0
DECISIVE_TIMES = 3.0

SPAN_SHOWN_TOKENS = 64
TEXT_SHOWN_CHARS = 400


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a server's clean answers score, in nats, sorted; made by `repro calibrate`."""

    model: str
    api: str  # chat | completions | generate: the route, and with it whether tokens come as texts or as ids
    rerun: tuple[float, ...]
    surprisal: tuple[float, ...]  # () where the server does not judge prompts
    confidence: tuple[float, ...] = ()  # () likewise
    answer_tokens: int = 0  # the longest answer asked for; 0: not known
    format: Literal[1] = 1

    def scores(self, oracle: Oracle) -> tuple[float, ...]:
        """Return the clean scores of an oracle."""
        return {"rerun": self.rerun, "surprisal": self.surprisal, "confidence": self.confidence}[oracle]

    def limit(self, oracle: Oracle, rate: float) -> float:
        """Return the score that a clean answer exceeds with at most this probability.

        Raises UsageError when so few answers cannot vouch for so small a rate.
        """
        scores = self.scores(oracle)
        rank = int(rate * (len(scores) + 1) + 1e-9)
        if rank < 1:
            raise UsageError(
                f"--false-alarm-rate {rate:g}: {len(scores)} clean answers can vouch for {1 / (len(scores) + 1):.2g} "
                f"at the least; `repro calibrate --answers {ceil(1 / rate) - 1}`, or choose a larger rate"
            )
        return sorted(scores)[-rank]


class Judged(msgspec.Struct, frozen=True):
    """What an oracle says of one answer."""

    request: str
    score: float | None  # None: it could not be asked; `why` says it
    why: str = ""


def judged(oracle: Oracle, check: Check) -> Judged:
    """Return an oracle's score of an answer: 0 where the server says the very same undisturbed."""
    if oracle == "rerun":
        if check.gap is None or check.rerun_why:
            return Judged(check.request, None, check.rerun_why or "the rerun does not tell how likely the token was")
        return Judged(check.request, round(check.gap, SCORE_DIGITS))
    if check.surprisal_why or not check.deficits:
        return Judged(check.request, None, check.surprisal_why or "the answer has no tokens")
    if oracle == "surprisal":
        return Judged(check.request, round(_worst_stretch(check.deficits, STRETCH_TOKENS)[0], SCORE_DIGITS))
    if not check.surprisals_under_load:
        return Judged(check.request, None, "the answer came without the log-probabilities of its tokens")
    score = sqrt(_worst_stretch(_squares(check), CONFIDENCE_TOKENS)[0])
    return Judged(check.request, round(score, SCORE_DIGITS) if score > RESOLUTION_NATS else 0.0)


def clean_cache(
    oracle: Oracle, checks: Sequence[Check], calibration: Calibration, rate: float, *, at_us: Callable[[str], float]
) -> DetectorVerdict:
    """Return an oracle's verdict over all checks, with a finding for each answer that it convicts.

    Answers that could not be asked make it unknown, unless others convict; so do convictions that are no more than
    the false-alarm rate lets expect. Raises UsageError for a rate that the calibration cannot vouch for.
    """
    if not calibration.scores(oracle):
        return DetectorVerdict(
            oracle, "not_applicable", (), f"the calibration has no scores of it: {_first_why(oracle, checks)}"
        )
    limit = calibration.limit(oracle, rate)
    scored = [(check, judged(oracle, check)) for check in checks]
    known = [(check, each.score) for check, each in scored if each.score is not None]
    guilty = [(check, score) for check, score in known if score > limit]
    findings = tuple(_finding(oracle, check, score, limit, at_us(check.request)) for check, score in guilty)
    missing = [each for _, each in scored if each.score is None]
    if findings and _by_chance([score for _, score in guilty], len(known), rate, calibration.scores(oracle)[-1]):
        why = (
            f"{len(findings)} of {len(known)} answers stand out, no more than a rate of {rate:g} lets expect by chance"
        )
        return DetectorVerdict(oracle, "unknown", findings, why, len(known))
    if findings:
        return DetectorVerdict(oracle, "anomaly", findings, checked=len(known))
    unproved = sum(not check.bypassed for check, _ in known)
    why = _unsure(missing, unproved, len(checks))
    answer: Answer = "unknown" if why else "clean"
    return DetectorVerdict(oracle, answer, (), why, len(known))


def _unsure(missing: Sequence[Judged], unproved: int, total: int) -> str:
    if not total:
        return "no answer was checked: the token budget (--oracle-tokens) does not reach for one"
    if missing:
        return f"{len(missing)} of {total} answers could not be judged: {missing[0].why}"
    if unproved:
        return (
            f"{unproved} of {total} reruns may have used the load's cache: the server tells no count of cached tokens"
        )
    return ""


def _by_chance(scores: Sequence[float], total: int, rate: float, largest_clean: float) -> bool:
    """Return whether as many convictions as these are more likely than not when every answer is clean."""
    if max(scores) >= max(DECISIVE_NATS, DECISIVE_TIMES * largest_clean):
        return False
    from scipy.stats import binom  # takes half a second, which few verdicts need

    return bool(binom.sf(len(scores) - 1, total, rate) > 0.5)


def _first_why(oracle: Oracle, checks: Sequence[Check]) -> str:
    whys = (judged(oracle, check).why for check in checks)
    return next(filter(None, whys), "its server did not tell what it takes, or it is an old one; calibrate anew")


def _worst_stretch(values: Sequence[float], tokens: int) -> tuple[float, int]:
    """Return the largest sum over so many neighbours, and where that stretch begins."""
    sums = [sum(values[at : at + tokens]) for at in range(max(1, len(values) - tokens + 1))]
    best = max(range(len(sums)), key=lambda at: sums[at])
    return sums[best], best


def _shifts(check: Check) -> list[float]:
    """Return how much surer of each token the server was under load, in log-odds."""
    pairs = zip(check.surprisals_under_load, check.surprisals, strict=True)
    return [_log_odds(given) - _log_odds(clean) for given, clean in pairs]


def _squares(check: Check) -> list[float]:
    return [shift * shift for shift in _shifts(check)]


def _log_odds(surprisal: float) -> float:
    if surprisal <= 0:
        return LOG_ODDS_MAX
    return max(-LOG_ODDS_MAX, min(LOG_ODDS_MAX, -surprisal - log(-expm1(-surprisal))))


def _finding(oracle: Oracle, check: Check, score: float, limit: float, at_us: float) -> Finding:
    scores = (round(score, 4), round(limit, 4))
    evidence: Evidence
    if oracle == "rerun":
        signature = "the answer differs from the rerun"
        evidence = RerunScore(*scores, check.first_difference, check.text[:TEXT_SHOWN_CHARS])
        claim = (
            f"from token {check.first_difference} on the answer is another one than the server gives alone, on a clean "
            f"cache, where its own token is {score:.3g} nats likelier"
        )
    elif oracle == "surprisal":
        signature = "the server would not say its own answer"
        start = _worst_stretch(check.deficits, STRETCH_TOKENS)[1]
        evidence = SurprisalScore(*scores, start, *_around(start, check.deficits))
        claim = (
            f"tokens {start} to {start + STRETCH_TOKENS - 1} of the answer are {score:.3g} nats behind what the server "
            "itself finds likeliest there on a clean cache"
        )
    else:
        signature = "the server is otherwise sure of its own answer"
        start = _worst_stretch(_squares(check), CONFIDENCE_TOKENS)[1]
        evidence = ConfidenceScore(*scores, start, *_around(start, _shifts(check)))
        claim = (
            f"the log-odds that came with tokens {start} to {min(start + CONFIDENCE_TOKENS, check.tokens) - 1} of the "
            f"answer are {score:.3g} nats (root of the summed squares) from what the server finds on a clean cache"
        )
    return Finding(oracle, "divergence", claim, signature, check.request, at_us, 1, evidence)


def _around(start: int, values: Sequence[float]) -> tuple[int, tuple[float, ...]]:
    """Return the values from a little before `start` on, rounded, and which is the first."""
    first = max(0, start - STRETCH_TOKENS)
    return first, tuple(round(value, 2) for value in values[first : start + SPAN_SHOWN_TOKENS])


def read_calibration(path: Path) -> Calibration:
    """Return the calibration in a file. Raises UsageError with what is wrong and how to make one."""
    calibration = read_struct(path, Calibration, what="calibration", next_step="`repro calibrate` makes one")
    if not calibration.rerun:
        raise UsageError(f"{path}: holds no clean answer; `repro calibrate` makes it anew")
    return calibration
