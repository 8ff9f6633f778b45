"""Wald's sequential probability ratio test: whether a rate is tolerable, decided as early as possible.

A. Wald, Sequential Tests of Statistical Hypotheses, 1945. Its units are sessions, hit or not: requests of one
session are not independent.
"""

from collections.abc import Iterable
from math import log
from typing import Literal

import msgspec

from repro.base.errors import ScenarioError

Known = Literal["low", "high"]


class Sequential(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The two rates that the test decides between, and how often it may be wrong."""

    rate_low: float  # share of sessions hit that is tolerated
    rate_high: float  # share that is not tolerated
    false_alarm_rate: float = 0.05  # says high, is low
    miss_rate: float = 0.05  # says low, is high

    def check(self, where: str) -> None:
        """Raise ScenarioError for rates that no test can decide between."""
        if not 0 < self.rate_low < self.rate_high < 1:
            raise ScenarioError(
                f"{where}: sequential: rate_low = {self.rate_low}, rate_high = {self.rate_high}; must be shares "
                "between 0 and 1, the low one below the high one"
            )
        for key in ("false_alarm_rate", "miss_rate"):
            if not 0 < getattr(self, key) < 0.5:
                raise ScenarioError(f"{where}: sequential: {key} = {getattr(self, key)}; must lie between 0 and 0.5")

    def known(self, hits: int, of: int) -> Known | None:
        """Return which rate holds after `of` sessions of which `hits` were hit; None while undecided."""
        missed = log((1 - self.rate_high) / (1 - self.rate_low))
        ratio = hits * log(self.rate_high / self.rate_low) + (of - hits) * missed
        # A likelihood ratio exceeds 1/a with a chance of at most a (Ville), however often one looks: Wald's own
        # limits, a little narrower, keep the sum of both rates only.
        if ratio >= log(1 / self.false_alarm_rate):
            return "high"
        return "low" if ratio <= log(self.miss_rate) else None


def runs_until_known(test: Sequential, runs: Iterable[tuple[int, int]]) -> tuple[int, Known] | None:
    """Return after how many runs of (sessions hit, sessions) which rate is known; None while undecided.

    It tests once per run: the sessions of a run may end in another order the next time.
    """
    hits = of = 0
    for number, (run_hits, run_of) in enumerate(runs, start=1):
        hits, of = hits + run_hits, of + run_of
        known = test.known(hits, of)
        if known is not None:
            return number, known
    return None
