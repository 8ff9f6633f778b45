"""Two rates side by side: exact tests, the effect with its interval, and the power of the comparison.

Sessions are the units wherever independence is needed: requests of one session share a prefix. Rates per request
carry the cluster-robust interval of `reports.rates`, and the exact test counts sessions that were hit. (A bootstrap
over sessions covered less where few were hit: 91 % for 95 % at 8 hit sessions of 150.)
"""

from collections.abc import Sequence
from math import sqrt

import numpy as np
import numpy.typing as npt
from scipy.stats import binom, boschloo_exact, fisher_exact, hypergeom

from reports.rates import CONFIDENCE, korn_graubard

BOSCHLOO_SESSIONS_MAX = 400  # sessions on a side; the test's table of outcomes grows with the square
SIGNIFICANT = 1 - CONFIDENCE
RARE = 1e-9  # outcomes rarer than that are left out of a power

Counts = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float64]
Sessions = Sequence[tuple[int, int]]  # (wrong requests, requests) of each session


def effect_interval(before: Sessions, after: Sessions) -> tuple[float, float]:
    """Return the interval of (rate after - rate before), from both rates' intervals over sessions.

    Newcombe's square-and-add (1998; Zou and Donner 2008 for any pair of intervals): it holds where a side has no hit.
    """
    (rate_b, (low_b, high_b)), (rate_a, (low_a, high_a)) = (
        (share(side), korn_graubard(side)) for side in (before, after)
    )
    difference = rate_a - rate_b
    low = difference - sqrt((rate_a - low_a) ** 2 + (high_b - rate_b) ** 2)
    high = difference + sqrt((high_a - rate_a) ** 2 + (rate_b - low_b) ** 2)
    return low, high


def exact_test(before: Sessions, after: Sessions) -> tuple[str, float]:
    """Return an exact test of equal shares of hit sessions, and its p-value (two-sided).

    Boschloo's up to BOSCHLOO_SESSIONS_MAX sessions, else Fisher's, whose p-value is never smaller.
    """
    table = np.array([[_hit(side), len(side) - _hit(side)] for side in (before, after)])
    if max(len(before), len(after)) <= BOSCHLOO_SESSIONS_MAX and before and after:
        p_value = float(boschloo_exact(table.T).pvalue)  # scipy takes the groups as columns
        # Where nothing or everything was hit, the statistic is the same for all, and it answers "not a number".
        return "Boschloo", 1.0 if np.isnan(p_value) else min(1.0, p_value)
    return "Fisher", float(fisher_exact(table).pvalue)


def power(rate_before: float, rate_after: float, units_before: int, units_after: int) -> float:
    """Return how often a one-sided Fisher test sees that a rate fell, with so many independent units a side.

    It sums over all outcomes that are not absurdly rare. Boschloo's test has at least this power.
    """
    counts_b, weights_b = _outcomes(rate_before, units_before)
    counts_a, weights_a = _outcomes(rate_after, units_after)
    before, after = np.meshgrid(counts_b, counts_a, indexing="ij")
    # Given the sum of both, the hits after are hypergeometric where the rates are equal.
    p_values = hypergeom.cdf(after, units_before + units_after, before + after, units_after)
    return float(np.outer(weights_b, weights_a)[p_values <= SIGNIFICANT].sum())


def share(sessions: Sessions) -> float:
    """Return the share of requests that went wrong; 0 for no request."""
    of = sum(size for _, size in sessions)
    return sum(hit for hit, _ in sessions) / of if of else 0.0


def _outcomes(rate: float, units: int) -> tuple[Counts, Weights]:
    """Return the counts that may well come of a rate, with their probabilities."""
    low, high = int(binom.ppf(RARE, units, rate)), int(binom.ppf(1 - RARE, units, rate))
    counts = np.arange(max(0, low), min(units, high) + 1)
    return counts, binom.pmf(counts, units, rate)


def _hit(sessions: Sessions) -> int:
    return sum(hit > 0 for hit, _ in sessions)
