"""How a model accepts its drafts when all is well: learned from clean answers, kept as a small JSON file.

A fixed limit fits no model for long: one whose drafts are nearly always right passes 0.96 with every healthy
answer. So the quantiles of whole answers are kept, and how often windows of 64 tokens had which rate.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from detectors.answers.cusum import Cusum, limit_for
from repro.base.errors import UsageError
from repro.base.json_file import read_struct
from repro.record.requests import SpecCounts

WINDOW_TOKENS = 64
ANSWERS_MIN = 50
WINDOWS_MIN = 100
SHARES = (0.00005, 0.0005, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5)  # their mirror images are learned too
PERCENT = 101  # windows are counted by their rate in whole per cent

# A change of one standard deviation is found fastest with half of it taken off each score. Scores are counted
# in sixteenths, which makes the run length exact; see `cusum`.
SLACK_DEVIATIONS = 0.5
SCORES_PER_DEVIATION = 16


class Quantile(msgspec.Struct, frozen=True):
    """A share of clean answers, and the value that so many of them stay below."""

    share: float
    value: float


class CleanAnswer(msgspec.Struct, frozen=True):
    """What is learned from one answer: its last counts, and the acceptance rate of each 64 tokens."""

    counts: SpecCounts
    window_rates: Sequence[float]


class AcceptanceProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The acceptance of one model's clean answers."""

    model: str
    drafts: float  # drafted tokens a verify: k of a chain
    answers: int
    tokens_min: int  # answers had at least so many tokens
    length: tuple[Quantile, ...]  # completion tokens a verify, of whole answers
    rate: tuple[Quantile, ...]  # accepted of drafted tokens, of whole answers
    windows: tuple[int, ...]  # how many windows of WINDOW_TOKENS had a rate of 0, 1, ... 100 %
    format: Literal[1] = 1

    @property
    def false_alarm_rate_min(self) -> float:
        """Return the least false-alarm rate per answer that so many answers can vouch for, both sides together."""
        return 2 * self.length[0].share

    def length_below(self, false_alarm_rate: float) -> float:
        """Return the length that at most half of this share of clean answers falls below."""
        return max(q.value for q in self.length if q.share <= false_alarm_rate / 2)

    def rate_above(self, false_alarm_rate: float) -> float:
        """Return the rate that at most half of this share of clean answers exceeds."""
        return min(q.value for q in self.rate if q.share >= 1 - false_alarm_rate / 2)


class Chart(msgspec.Struct, frozen=True):
    """What a window adds to the sum of falls and of rises, by its rate in per cent, and the sums' limits."""

    falls: tuple[int, ...]
    rises: tuple[int, ...]
    fall_limit: int | None  # None: clean windows are such that nothing can be a fall
    rise_limit: int | None


def learn(model: str, answers: Sequence[CleanAnswer], tokens_min: int) -> AcceptanceProfile:
    """Return the profile of these answers, those of fewer tokens left out. Raises UsageError for too few."""
    long = [answer for answer in answers if answer.counts.completion_tokens >= tokens_min]
    windows = np.zeros(PERCENT, dtype=int)
    for answer in long:
        for rate in answer.window_rates:
            windows[percent(rate)] += 1
    if len(long) < ANSWERS_MIN or windows.sum() < WINDOWS_MIN:
        raise UsageError(
            f"{len(long)} clean answers of at least {tokens_min} tokens, with {windows.sum()} windows of "
            f"{WINDOW_TOKENS} tokens, are too few to learn from; at least {ANSWERS_MIN} and {WINDOWS_MIN} are needed"
        )
    drafts = {round(answer.counts.drafts) for answer in long}
    if len(drafts) > 1:
        raise UsageError(f"answers with {sorted(drafts)} drafts a verify are not of one configuration")
    return AcceptanceProfile(
        model=model,
        drafts=drafts.pop(),
        answers=len(long),
        tokens_min=tokens_min,
        length=_quantiles([answer.counts.accept_length for answer in long]),
        rate=_quantiles([answer.counts.accept_rate for answer in long]),
        windows=tuple(windows.tolist()),
    )


def _quantiles(values: Sequence[float]) -> tuple[Quantile, ...]:
    """Return the order statistics that a further value of the same kind passes with at most that probability.

    It falls below the r-th smallest of n with probability r / (n + 1) at most; shares that n cannot tell are left out.
    """
    ordered = sorted(values)
    low, high = [], []
    for share in SHARES:
        rank = int(share * (len(ordered) + 1))
        if rank:
            low.append(Quantile(share, ordered[rank - 1]))
            high.append(Quantile(1 - share, ordered[-rank]))
    return (*low, *reversed(high))


def percent(rate: float) -> int:
    """Return which bin of `AcceptanceProfile.windows` a rate belongs to."""
    return min(max(round(100 * rate), 0), PERCENT - 1)


def chart_of(profile: AcceptanceProfile, arl_tokens: float) -> Chart:
    """Return the chart whose two sums together alarm once in `arl_tokens` tokens of clean text, on average.

    A score is the normal deviate of the window's place among the clean ones; one more window, spread over all
    rates, stands for those that were not seen. Windows are taken as independent: where answers differ from each
    other as wholes, alarms come more often, and `repro profile` tells how many of its own answers alarm. Learned
    from 200 answers, the true run length was 0.64 to 5.1 times the stated one, from 50 it was 0.25 to 40 times
    (tests.bench.acceptance). Raises UsageError when so rare an alarm cannot be had.
    """
    from scipy.special import ndtri  # takes a tenth of a second, which a run without a profile does not need

    counts = np.asarray(profile.windows, dtype=float) + 1 / PERCENT
    shares = counts / counts.sum()
    middle = np.cumsum(shares) - shares / 2
    deviations = ndtri(middle)
    falls = np.rint((-deviations - SLACK_DEVIATIONS) * SCORES_PER_DEVIATION).astype(int).tolist()
    rises = np.rint((deviations - SLACK_DEVIATIONS) * SCORES_PER_DEVIATION).astype(int).tolist()
    run_length = 2 * arl_tokens / WINDOW_TOKENS
    try:
        limits = [limit_for(scores, shares.tolist(), run_length) for scores in (falls, rises)]
    except ValueError as error:
        raise UsageError(f"arl_tokens = {arl_tokens:g}: {error}; choose fewer tokens between false alarms") from error
    return Chart(tuple(falls), tuple(rises), *limits)


def alarms(chart: Chart, window_rates: Sequence[float]) -> bool:
    """Return whether the change detection convicts an answer of these windows."""
    falls, rises = Cusum(chart.fall_limit), Cusum(chart.rise_limit)
    bins = [percent(rate) for rate in window_rates]
    return any([falls.feed(chart.falls[each]) or rises.feed(chart.rises[each]) for each in bins])


def read_profile(path: Path) -> AcceptanceProfile:
    """Return the profile in a file. Raises UsageError with what is wrong and how to make one."""
    profile = read_struct(path, AcceptanceProfile, what="acceptance profile", next_step="`repro profile` makes one")
    if len(profile.windows) != PERCENT or not profile.length or not profile.rate:
        raise UsageError(f"{path}: expected quantiles and {PERCENT} counts of windows; `repro profile` makes it anew")
    return profile
