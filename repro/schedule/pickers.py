"""Who goes next: the natural order, a random one, or the one on a tape.

Choices come sorted by when a real machine would do them, so 0 is the natural choice. A tape is the
list of what was chosen; where it ends, or asks for more than there is, the natural choice is taken.
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
        """Return whose it is: a stream's number, or -1 for the host's timer."""

    @property
    def kind(self) -> str:
        """Return "start" or "end" of an operation, or "timer"."""

    @property
    def name(self) -> str:
        """Return what the operation does; "host" for the timer."""

    @property
    def declared(self) -> tuple[Access, ...]:
        """Return what the operation may touch."""


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


class TapePicker:
    """Play a recorded list of choices."""

    def __init__(self, tape: Sequence[int]) -> None:
        self._tape = tape
        self._step = 0

    def __call__(self, choices: Sequence[Candidate]) -> int:
        chosen = self._tape[self._step] if self._step < len(self._tape) else 0
        self._step += 1
        return min(chosen, len(choices) - 1)


class Recording:
    """Any picker, with what it chose kept as a tape."""

    def __init__(self, picker: Pick) -> None:
        self._picker = picker
        self.tape: list[int] = []

    def __call__(self, choices: Sequence[Candidate]) -> int:
        chosen = self._picker(choices)
        self.tape.append(chosen)
        return chosen
