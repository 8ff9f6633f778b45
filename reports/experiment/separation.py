"""How well acceptance metrics separate garbled and looping answers from clean ones, in the runs of an experiment.

Three rules are compared. The *fixed* one is that of "Scaling Pain of Coding Agent Serving" (Z.ai, 2026): an accept
length below 1.4, or an accept rate above 0.96. The *learned* one asks how far out an answer lies among clean
answers of other seeds: the order statistics of `detectors.answers.acceptance_profile`, at full resolution. The
*windows* one asks how far an answer lies from clean ones of its length, and how far its oddest 64 tokens do: what
starts late, or goes up and down, has an average like any other.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from detectors.answers.acceptance import LENGTH_MIN, RATE_MAX
from detectors.text.repetition import Repetition
from reports.experiment.steps import is_corrupted
from repro.base import rng
from repro.record.requests import WHOLE, RequestRecord

Truth = Literal["clean", "unharmed", "diverged", "garbled", "looping"]
RESAMPLES = 2000
RESAMPLES_MIN = 200  # resamples with answers of both kinds; with fewer there is no interval
LEARNED_FALSE_ALARMS = 0.05  # the learned rule convicts at this rate; few answers vouch for no less
RATE_STEP = 0.005  # the finest step of an accept rate over 64 tokens
WINDOW_SIGMAS = 4.0  # the windows rule convicts at this distance
LEARNED_MIN = 20  # clean answers to learn from
BAD: tuple[Truth, ...] = ("diverged", "garbled", "looping")
SEEN: tuple[Truth, ...] = ("garbled", "looping")  # the text alone shows these

Floats = NDArray[np.float64]


class Answer(msgspec.Struct, frozen=True):
    """One whole answer with counts of speculative decoding."""

    request: str
    session: str
    seed: int
    length: float  # completion tokens a verify
    rate: float  # share of the drafts that were accepted
    tokens: int
    truth: Truth
    windows: tuple[float, ...] = ()  # accept rate of each 64 tokens


class Score(msgspec.Struct, frozen=True):
    """How a rule's score separates diverged from clean answers. Shares are of what it convicts at its limits.

    `seen` is the area for those diverged answers only that the text convicts too; None where there are none.
    """

    rule: str
    auroc: float
    low: float | None  # 95 %, by resampling sessions; None where there are too few
    high: float | None
    recall: float
    false_alarms: float
    seen: float | None = None


class Separation(msgspec.Struct, frozen=True):
    """All answers of the scatter, and how well each rule separates them."""

    answers: tuple[Answer, ...]
    scores: tuple[Score, ...]
    counts: dict[str, int]  # answers by truth
    learned_from: int  # clean answers of the other half of the seeds, at least
    why: str = ""  # set when there is no score


def answer_of(record: RequestRecord, seed: int) -> Answer | None:
    """Return a request's answer; None for one that was cut off or has no counts of drafts."""
    if record.finish not in WHOLE or not record.spec_draft_token_num:
        return None
    spec = record.spec
    return Answer(
        record.request, record.session, seed, round(spec.accept_length, 4), round(spec.accept_rate, 4),
        record.completion_tokens, _truth(record), tuple(record.spec_window_rates),
    )  # fmt: skip


def _truth(record: RequestRecord) -> Truth:
    if record.oracle == "diverged" and is_corrupted(record):
        if not record.visible:
            return "diverged"
        return "looping" if Repetition.name in record.detectors else "garbled"
    return "unharmed" if is_corrupted(record) else "clean"


def separate(judged: Sequence[Answer], clean: Sequence[Answer]) -> Separation:
    """Score `judged`, each half of the seeds by what the `clean` answers of the other half teach."""
    seeds = sorted({answer.seed for answer in judged})
    halves = [frozenset(seeds[::2]), frozenset(seeds[1::2])]
    learned = [_unique_clean(clean, half) for half in reversed(halves)]
    counts = {truth: sum(each.truth == truth for each in judged) for truth in get_args(Truth)}
    bad = np.array([each.truth in BAD for each in judged], bool)
    seen = np.array([each.truth in SEEN for each in judged], bool)
    good = np.array([each.truth == "clean" for each in judged], bool)
    fewest = min(map(len, learned))
    if not bad.any() or not good.any():
        return Separation(tuple(judged), (), counts, fewest, "there are no answers of both kinds")
    if fewest < LEARNED_MIN:
        why = f"{fewest} clean answers of other seeds are too few to learn from; {LEARNED_MIN} are needed"
        return Separation(tuple(judged), (), counts, fewest, why)
    far_out, oddest = np.zeros(len(judged)), np.zeros(len(judged))
    for half, known in zip(halves, learned, strict=True):
        inside = np.array([each.seed in half for each in judged])
        far_out[inside] = _learned_scores([each for each in judged if each.seed in half], known)
        oddest[inside] = _window_scores([each for each in judged if each.seed in half], known)
    sessions = [each.session for each in judged]
    rules = (
        ("fixed", _fixed_scores(judged), 1.0),
        ("learned", far_out, -LEARNED_FALSE_ALARMS),
        ("windows", oddest, WINDOW_SIGMAS),
    )
    scores = tuple(_score(rule, each, limit, bad, seen, good, sessions) for rule, each, limit in rules)
    return Separation(tuple(judged), scores, counts, fewest)


def _unique_clean(answers: Sequence[Answer], seeds: frozenset[int]) -> list[Answer]:
    """Return the clean answers of these seeds; a request that several steps have asked counts once."""
    return list({each.request: each for each in answers if each.seed in seeds and each.truth == "clean"}.values())


def _fixed_scores(answers: Sequence[Answer]) -> Floats:
    """Return what is above 1 exactly where the fixed rule convicts, whatever the answer's tokens."""
    return np.array([max(LENGTH_MIN / each.length, each.rate / RATE_MAX) for each in answers])


def _learned_scores(answers: Sequence[Answer], clean: Sequence[Answer]) -> Floats:
    """Return minus the share of clean answers that lie at least as far out, on the side of either limit."""
    lengths, rates = np.sort([each.length for each in clean]), np.sort([each.rate for each in clean])
    as_short = np.searchsorted(lengths, [each.length for each in answers], side="right")
    as_high = len(clean) - np.searchsorted(rates, [each.rate for each in answers], side="left")
    share: Floats = (np.minimum(as_short, as_high) + 1) / (len(clean) + 1)
    return -np.minimum(1.0, 2 * share)


def _window_scores(answers: Sequence[Answer], clean: Sequence[Answer]) -> Floats:
    """Return how many standard deviations an answer lies from clean ones: on average, or in its oddest 64 tokens.

    Averages are compared with those of clean answers of its length, for the first tokens of an answer are guessed
    worse than the rest. Their spread falls with the root of the length.
    """
    windows = [rate for each in clean for rate in each.windows]
    known = len(windows) >= LEARNED_MIN
    usual = float(np.mean(windows)) if known else 0.0
    deviation = max(float(np.std(windows)), RATE_STEP) if known else float("inf")
    lengths = np.log([each.tokens for each in clean])
    degree = min(2, len(np.unique(lengths)) - 1)
    trend = np.polynomial.Polynomial.fit(lengths, [each.rate for each in clean], deg=degree)

    def off(answer: Answer) -> float:
        return float(abs(answer.rate - trend(np.log(answer.tokens))) * answer.tokens**0.5)

    spread = max(float(np.sqrt(np.mean([off(each) ** 2 for each in clean]))), RATE_STEP)
    oddest = [max((abs(rate - usual) / deviation for rate in each.windows), default=0.0) for each in answers]
    return np.maximum([off(each) / spread for each in answers], oddest)


def _score(
    rule: str,
    scores: Floats,
    limit: float,
    bad: NDArray[np.bool_],
    seen: NDArray[np.bool_],
    good: NDArray[np.bool_],
    sessions: Sequence[str],
) -> Score:
    low, high = _interval(scores, bad, good, sessions)
    return Score(
        rule, auroc(scores[bad], scores[good]), low, high,
        recall=float(np.mean(scores[bad] > limit)),
        false_alarms=float(np.mean(scores[good] > limit)),
        seen=auroc(scores[seen], scores[good]) if seen.any() else None,
    )  # fmt: skip


def auroc(bad: Floats, good: Floats) -> float:
    """Return how often a bad answer scores above a good one, ties counted half (Mann-Whitney U)."""
    ordered = np.sort(good)
    below, not_above = (np.searchsorted(ordered, bad, side) for side in ("left", "right"))
    return float((below + not_above).sum() / (2 * len(bad) * len(good)))


def _interval(
    scores: Floats, bad: NDArray[np.bool_], good: NDArray[np.bool_], sessions: Sequence[str]
) -> tuple[float | None, float | None]:
    """Return the 95 % percentile interval over resampled sessions."""
    members = [np.flatnonzero(np.array(sessions) == name) for name in sorted(set(sessions))]
    draw = rng.generator(0, "auroc")
    found = []
    for _ in range(RESAMPLES):
        chosen = np.concatenate([members[each] for each in draw.integers(len(members), size=len(members))])
        drawn_bad, drawn_good = scores[chosen[bad[chosen]]], scores[chosen[good[chosen]]]
        if len(drawn_bad) and len(drawn_good):
            found.append(auroc(drawn_bad, drawn_good))
    if len(found) < RESAMPLES_MIN:
        return None, None
    low, high = np.quantile(found, (0.025, 0.975))
    return float(low), float(high)
