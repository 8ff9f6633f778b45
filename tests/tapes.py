"""Recorded choices of a picker, and a picker that plays them again."""

from collections.abc import Sequence

from repro.schedule.pickers import Candidate, Pick


class TapePicker:
    """Play a recorded list of choices; where it ends, or asks for more than there is, the natural one is taken."""

    def __init__(self, tape: Sequence[int]) -> None:
        self._tape = tape
        self._step = 0

    def __call__(self, choices: Sequence[Candidate]) -> int:
        chosen = self._tape[self._step] if self._step < len(self._tape) else 0
        self._step += 1
        return min(chosen, len(choices) - 1)


class Recording:
    """Any picker, with what it chose on a tape."""

    def __init__(self, picker: Pick) -> None:
        self._picker = picker
        self.tape: list[int] = []

    def __call__(self, choices: Sequence[Candidate]) -> int:
        chosen = self._picker(choices)
        self.tape.append(chosen)
        return chosen
