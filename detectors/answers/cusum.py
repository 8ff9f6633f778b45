"""A cumulative sum of scores, and where it must convict to be wrong as seldom as wanted.

The sum never falls below zero: it forgets what was good, so a change that comes late stands out (Page 1954).
Scores are whole numbers, so the sum is a Markov chain with few states, and the average run length until a
false alarm comes from a linear system without an approximation (Brook and Evans 1972).
"""

from collections.abc import Sequence

import numpy as np

LIMIT_STEP = 16
LIMIT_MAX = 1024  # bound on the sum: the linear system has as many unknowns


class Cusum:
    """One sum on its way; `since` is the number of scores before the rise that it is in."""

    def __init__(self, limit: int | None) -> None:
        self.sum = 0
        self.since = 0
        self._limit = limit  # None: no score can raise it
        self._seen = 0

    def feed(self, score: int) -> bool:
        """Take the next score; return whether the sum has passed its limit."""
        self._seen += 1
        self.sum = max(0, self.sum + score)
        if self.sum == 0:
            self.since = self._seen
        return self._limit is not None and self.sum > self._limit


def average_run_length(scores: Sequence[int], shares: Sequence[float], limit: int) -> float:
    """Return after how many scores the sum passes `limit` on average, `shares` being each score's probability."""
    states = limit + 1
    step = np.zeros(2 * states + 1)  # probability of a step by -states ... states
    for score, share in zip(scores, shares, strict=True):
        step[min(max(score, -states), states) + states] += share
    to, start = np.meshgrid(np.arange(states), np.arange(states))
    chain = step[to - start + states]
    chain[:, 0] = np.cumsum(step)[states - np.arange(states)]  # everything that would go below zero stays there
    return float(np.linalg.solve(np.eye(states) - chain, np.ones(states))[0])


def limit_for(scores: Sequence[int], shares: Sequence[float], run_length: float) -> int | None:
    """Return the least limit whose average run length is at least `run_length` scores.

    None when no score of positive probability raises the sum, so that it never can. Raises ValueError when
    no limit up to LIMIT_MAX is enough.
    """
    if not any(score > 0 and share > 0 for score, share in zip(scores, shares, strict=True)):
        return None
    enough = 0
    while average_run_length(scores, shares, enough) < run_length:
        enough += LIMIT_STEP  # small: far beyond the wanted run length the system cannot be solved in doubles
        if enough > LIMIT_MAX:
            raise ValueError(f"no limit up to {LIMIT_MAX} has an average run length of {run_length:g}")
    short = max(-1, enough - LIMIT_STEP)
    while enough - short > 1:
        middle = (enough + short) // 2
        if average_run_length(scores, shares, middle) >= run_length:
            enough = middle
        else:
            short = middle
    return enough
