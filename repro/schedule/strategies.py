"""Strategies that search the schedules of a run, and the rules that all of them keep.

PCT is after Burckhardt et al. (ASPLOS 2010), POS after Yuan et al. (CAV 2018), SURW after Zhao et al. (ASPLOS 2025);
holding back one side of a race that happens-before has found is RaceFuzzer's way (Sen, PLDI 2008).
"""

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple
from zlib import crc32

from repro.base.probe import Access
from repro.base.rng import generator, uniform
from repro.schedule.pickers import Candidate, Pick, RandomPicker, timed
from repro.schedule.schedule import STEPS_GUESSED, WINDOWS_US, Schedule

OVERTAKINGS_MAX = 16  # an explanation with more would not be read
OPERATION_BITS = 14  # two bytes of a token


class Overtaking(NamedTuple):
    """A step at which another actor acted before the one that a real machine would have chosen."""

    step: int
    name: str
    kind: str
    overtaken: str
    overtaken_kind: str


class Exploring:
    """A device's picker that asks a strategy at steps, and keeps on a tape which contender was taken.

    What nobody can notice goes at its natural time, and is no step. Nobody waits longer than the window
    for others that came later: a strategy that starves an actor would else turn every wait into a timeout.
    """

    def __init__(self, strategy: Pick, window_us: float) -> None:
        self._strategy = strategy
        self._window_us = window_us
        self.tape: list[int] = []
        self.overtakings: list[Overtaking] = []  # the first ones
        self.contended: dict[int, int] = {}  # stream -> how often it was taken at a step

    def __call__(self, choices: Sequence[Candidate]) -> int:
        first = choices[0]
        if not first.noticed:
            return 0
        until_us = first.time_us + self._window_us
        places = [n for n, each in enumerate(choices) if each.time_us <= until_us and each.noticed]
        if len(places) < 2:
            return 0
        chosen = self._strategy([choices[place] for place in places])
        self.tape.append(chosen)
        taken = choices[places[chosen]]
        if chosen and len(self.overtakings) < OVERTAKINGS_MAX:
            step = len(self.tape) - 1
            self.overtakings.append(Overtaking(step, taken.name, taken.kind, first.name, first.kind))
        self.contended[taken.stream] = self.contended.get(taken.stream, 0) + 1
        return places[chosen]


class Deviating:
    """A strategy that is overruled at some steps. A contender beyond the last is the last one."""

    def __init__(self, strategy: Pick, deviations: Iterable[tuple[int, int]]) -> None:
        self._strategy = strategy
        self._deviations = dict(deviations)
        self._step = 0

    def __call__(self, choices: Sequence[Candidate]) -> int:
        chosen = self._strategy(choices)  # asked in any case, because its later draws depend on it
        chosen = min(self._deviations.get(self._step, chosen), len(choices) - 1)
        self._step += 1
        return chosen


class PctPicker:
    """Random priorities by actor, and at `depth` - 1 random steps the highest becomes the lowest."""

    def __init__(self, seed: int, depth: int, steps: int) -> None:
        self._seed = seed
        self._priorities: dict[int, float] = {}
        drops = generator(seed, "drops").choice(steps, size=min(depth - 1, steps), replace=False)
        self.drops: dict[int, int] = {int(step): number for number, step in enumerate(drops, 1)}
        self._step = 0

    def __call__(self, choices: Sequence[Candidate]) -> int:
        for each in choices:
            if each.stream not in self._priorities:
                self._priorities[each.stream] = uniform(self._seed, "priority", each.stream)
        chosen = self._highest(choices)
        drop = self.drops.get(self._step)
        if drop is not None:
            self._priorities[choices[chosen].stream] = -drop  # lower than any drawn priority
            chosen = self._highest(choices)
        self._step += 1
        return chosen

    def _highest(self, choices: Sequence[Candidate]) -> int:
        return max(range(len(choices)), key=lambda place: self._priorities[choices[place].stream])


class PosPicker:
    """A random priority for each actor's next act, drawn anew for those that race with the act just taken."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._draws = 0
        self._priorities: dict[int, float] = {}

    def __call__(self, choices: Sequence[Candidate]) -> int:
        for each in choices:
            if each.stream not in self._priorities:
                self._draws += 1
                self._priorities[each.stream] = uniform(self._seed, "act", self._draws)
        chosen = max(range(len(choices)), key=lambda place: self._priorities[choices[place].stream])
        taken = choices[chosen]
        for each in choices:
            if each is taken or conflict(taken, each):
                del self._priorities[each.stream]
        return chosen


class SurwPicker:
    """Pick an actor with a probability in proportion to the steps that it has left, by an earlier run's count."""

    def __init__(self, seed: int, weights: Sequence[int]) -> None:
        self._seed = seed
        self._left = {stream: 1 << weight for stream, weight in enumerate(weights, -1)}
        self._step = 0

    def __call__(self, choices: Sequence[Candidate]) -> int:
        left = [max(1, self._left.get(each.stream, 1)) for each in choices]
        draw = uniform(self._seed, "left", self._step) * sum(left)
        self._step += 1
        chosen = 0
        while draw >= left[chosen] and chosen < len(left) - 1:
            draw -= left[chosen]
            chosen += 1
        self._left[choices[chosen].stream] = left[chosen] - 1
        return chosen


class HoldPicker:
    """The natural order, but that all others go before one operation, wherever it comes up."""

    def __init__(self, operation: int) -> None:
        self._operation = operation

    def __call__(self, choices: Sequence[Candidate]) -> int:
        others = (place for place, each in enumerate(choices) if number_of(each.name) != self._operation)
        return next(others, 0)


def explorer(schedule: Schedule) -> Exploring:
    """Return the device's picker of a schedule."""
    strategy = _strategy(schedule)
    if schedule.deviations:
        strategy = Deviating(strategy, schedule.deviations)
    return Exploring(strategy, WINDOWS_US[schedule.window])


def stands_alone(schedule: Schedule) -> Callable[[str], bool]:
    """Return which operations, by name, the schedule must be asked about one by one: those that it holds back."""
    if schedule.strategy != "hold":
        return lambda name: False
    return lambda name: number_of(name) == schedule.seed


def _strategy(schedule: Schedule) -> Pick:
    if schedule.strategy == "timed":
        return timed
    if schedule.strategy == "random":
        return RandomPicker(schedule.seed)
    if schedule.strategy == "pos":
        return PosPicker(schedule.seed)
    if schedule.strategy == "surw":
        return SurwPicker(schedule.seed, schedule.weights)
    if schedule.strategy == "hold":
        return HoldPicker(schedule.seed)
    return PctPicker(schedule.seed, int(schedule.strategy[-1]), schedule.steps or STEPS_GUESSED)


@lru_cache(maxsize=1024)
def number_of(operation: str) -> int:
    """Return the number by which a schedule that holds an operation back names it."""
    return crc32(operation.encode()) & (1 << OPERATION_BITS) - 1


def weights_of(contended: dict[int, int]) -> tuple[int, ...]:
    """Return SURW's weights of a recorded run: by stream, the host's -1 first."""
    counts = [contended.get(stream, 0) for stream in range(-1, max(contended, default=-1) + 1)]
    return tuple(count.bit_length() for count in counts)


def conflict(one: Candidate, other: Candidate) -> bool:
    """Return whether the order of the two could matter. It says yes too often: pages are not looked at."""
    return any(
        (a.tier, a.component, a.layer) == (b.tier, b.component, b.layer) and (a.write or b.write)
        for a in one.declared
        if _takes_effect(one, a)
        for b in other.declared
        if _takes_effect(other, b)
    )


def _takes_effect(choice: Candidate, access: Access) -> bool:
    """Operations read when they start and write when they end."""
    return access.write == (choice.kind == "end")
