"""Who goes next: the natural order, or a random one.

Choices come sorted by when a real machine would do them, so 0 is the natural choice.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from repro.base.probe import Access
from repro.base.rng import uniform


class Candidate(Protocol):
    """What a picker may look at: one thing that may happen next."""

    @property
    def time_us(self) -> float:
        """Return when a real machine would do it."""

    @property
    def stream(self) -> int:
        """Return the number of its stream, -1 for the host's timer."""

    @property
    def kind(self) -> str:
        """Return "start" or "end" of an operation, or "timer"."""

    @property
    def name(self) -> str:
        """Return what the operation does; "host" for the timer."""

    @property
    def declared(self) -> tuple[Access, ...]:
        """Return what the operation may touch."""

    @property
    def noticed(self) -> bool:
        """Return whether anybody could tell when this happens: a host's timer, or an access to pages."""


Pick = Callable[[Sequence[Candidate]], int]


def timed(choices: Sequence[Candidate]) -> int:
    """Pick what a real machine would do."""
    return 0


class RandomPicker:
    """Pick anything that causality allows, whatever its duration; a function of seed and step."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._step = 0

    def __call__(self, choices: Sequence[Candidate]) -> int:
        self._step += 1
        return int(uniform(self._seed, "pick", self._step) * len(choices))
