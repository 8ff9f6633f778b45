"""A schedule as a value: who chooses, with which seed, and the steps at which something else is chosen.

A step is a moment at which several actors are about to do what others may notice (`strategies.Exploring`).
At each one of the contenders is taken; 0 is the one that a real machine would take.
"""

from typing import Literal, get_args

import msgspec

Strategy = Literal["timed", "random", "pct2", "pct3", "pct5", "pos", "surw", "hold"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
WINDOWS_US = (1e3, 1e4, 1e5, 1e6, 1e7)  # hiccups of a driver, a busy processor, a network, a whole host; a dead link
WINDOW = 1
STEPS_GUESSED = 4096  # the guess of PCT before any run has counted them


class Schedule(msgspec.Struct, frozen=True):
    """One schedule of a run. An earlier run gave `steps` and `weights`, for PCT and SURW.

    `hold` draws nothing: its seed is the number of the operation that it holds back.
    """

    strategy: Strategy = "timed"
    seed: int = 0
    window: int = WINDOW  # index into WINDOWS_US: how long an actor may be held back
    steps: int = 0  # number of steps of the whole run; 0: not known
    weights: tuple[int, ...] = ()  # one an actor, the host first: binary logarithm of how often it contended
    deviations: tuple[tuple[int, int], ...] = ()  # (step, contender), steps ascending from 0

    @property
    def natural(self) -> bool:
        """Return whether this is what a real machine would do."""
        return self.strategy == "timed" and not self.deviations


def deviations_of(tape: list[int]) -> tuple[tuple[int, int], ...]:
    """Return where a recorded tape leaves the natural order."""
    return tuple((step, chosen) for step, chosen in enumerate(tape) if chosen)
