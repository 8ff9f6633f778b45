"""What to play next: one strategy with ever new seeds, or a portfolio that learns which pay."""

from collections.abc import Sequence
from typing import Literal, get_args

import msgspec
from msgspec.structs import replace

from repro.base.rng import uniform
from repro.schedule.schedule import STRATEGIES, WINDOWS_US, Schedule, Strategy
from repro.schedule.strategies import number_of
from repro.search.play import Played

Search = Literal["random", "pct2", "pct3", "pct5", "pos", "surw", "portfolio"]
SEARCHES: tuple[Search, ...] = get_args(Search)
MUTATION = "mutation"
HOLD: Strategy = "hold"
WINDOWS_HELD = tuple(reversed(range(len(WINDOWS_US))))  # the longest shows most
NEW_DEVIATIONS_MAX = 3
DEVIATIONS_MAX = 8  # a token holds a mutant with this many
CORPUS_MAX = 1_000

Hold = tuple[int, int]  # an operation, by number, and for how long: a window


class Entry(msgspec.Struct, frozen=True):
    """A schedule that brought orders which none before had brought."""

    schedule: Schedule
    steps: int
    new_orders: int


class Corpus(msgspec.Struct, frozen=True):
    """What a hunt leaves to the next: how far it came, and the schedules that brought new orders."""

    taken: int = 0  # the highest number of a schedule that was proposed
    entries: tuple[Entry, ...] = ()
    held: tuple[Hold, ...] = ()  # holds that were played


NO_CORPUS = Corpus()


class Searcher:
    """Proposes schedules by number and learns from what became of them.

    Schedule 0 is the natural one; it tells how many steps there are and how often each actor contends. The seeds of
    the others are their numbers plus `first_seed`, small so that tokens are short. A search with an earlier one's
    corpus goes on behind the schedules that were `taken` there.

    An arm is one way to choose a schedule: a strategy, a hold, or the mutation of a schedule in the corpus. An arm is
    drawn with the probability of what its schedules have paid, in new orders each.

    The portfolio first holds back, one at a time, the operations that `ordering` has found unordered: the natural
    schedule shows that an edge is missing, and only the other order makes bytes wrong. Then it holds back for the
    longest time, one at a time, the other operations that meet at pages, the rarest first: copies and transfers are
    rare beside steps, and requests that wait that long for them time out. Shorter holds are an arm like the
    strategies.
    """

    def __init__(self, search: Search, seed: int, before: Corpus = NO_CORPUS, first_seed: int = 0) -> None:
        self.orders: set[str] = set()
        self.corpus = list(before.entries[-CORPUS_MAX:])
        self._search = search
        self._seed = seed
        self._first_seed = first_seed
        self._taken_before = self._taken = before.taken
        self._held = set(before.held)  # holds that were played
        self._first_holds: dict[Hold, None] = {}  # played before anything else, in this order
        self._later_holds: dict[Hold, None] = {}  # played when their arm is drawn
        self._steps = 0
        self._weights: tuple[int, ...] = ()
        arms: list[str] = [search]
        if search == "portfolio":
            arms = [*(each for each in STRATEGIES if each != "timed"), MUTATION]
        self._paid = {arm: [1, 1] for arm in arms}  # new orders, schedules

    def propose(self, number: int) -> tuple[str, Schedule]:
        """Return the schedule with this number, and which arm it is of."""
        if number == 0:
            return "natural", Schedule()
        place = self._taken_before + number
        self._taken = max(self._taken, place)
        arm = HOLD if self._first_holds else self._arm(place)
        if arm == HOLD:
            return arm, self._next_hold(self._first_holds or self._later_holds)
        if arm == MUTATION:
            return arm, self._mutant(place)
        return arm, self._fresh(arm, place)

    def learn(self, arm: str, played: Played) -> int:
        """Take what a schedule came to; return how many orders it brought that are new."""
        if arm == "natural":
            self._steps, self._weights = played.steps, played.weights
        if self._search == "portfolio":
            self._first_holds |= self._unplayed_holds(played.suspects)
            if arm == "natural":
                self._first_holds |= self._unplayed_holds(played.operations, WINDOWS_HELD[:1])
            self._later_holds |= self._unplayed_holds(played.operations)
        new = len(played.orders - self.orders)
        self.orders |= played.orders
        if arm in self._paid:
            self._paid[arm][0] += new
            self._paid[arm][1] += 1
        if new and len(self.corpus) < CORPUS_MAX:
            self.corpus.append(Entry(played.options.schedule, played.steps, new))
        return new

    def corpus_left(self) -> Corpus:
        """Return what the next search can go on from."""
        return Corpus(self._taken, tuple(self.corpus), tuple(sorted(self._held)))

    def _arm(self, number: int) -> str:
        """Return an arm, with the probability of the new orders that each of its schedules has brought."""
        material = {MUTATION: self.corpus, HOLD: self._later_holds}  # an arm without any is not drawn
        worth = {arm: new / runs for arm, (new, runs) in self._paid.items() if material.get(arm, True)}
        draw = uniform(self._seed, "arm", number) * sum(worth.values())
        for arm, share in worth.items():
            draw -= share
            if draw < 0:
                return arm
        return next(iter(worth))

    def _unplayed_holds(self, operations: Sequence[str], windows: Sequence[int] = WINDOWS_HELD) -> dict[Hold, None]:
        """Return the ways to hold these operations back that have not been played, the longest windows first."""
        holds = ((number_of(name), window) for window in windows for name in operations)
        return {hold: None for hold in holds if hold not in self._held}

    def _next_hold(self, holds: dict[Hold, None]) -> Schedule:
        """Return a schedule that plays the first of these holds; it is not played again."""
        hold = next(iter(holds))
        self._held.add(hold)
        self._first_holds.pop(hold, None)
        self._later_holds.pop(hold, None)
        operation, window = hold
        return Schedule(HOLD, operation, window)

    def _fresh(self, arm: str, number: int) -> Schedule:
        """Return a schedule of a strategy with a new seed."""
        strategy = msgspec.convert(arm, Strategy)
        weights = self._weights if strategy == "surw" else ()
        steps = self._steps if strategy.startswith("pct") else 0
        return Schedule(
            strategy, self._first_seed + number, self._draw(len(WINDOWS_US), number, "window"), steps, weights
        )

    def _mutant(self, number: int) -> Schedule:
        """Return a schedule of the corpus with another window, or taken elsewhere at a few more steps."""
        entry = self.corpus[self._draw(len(self.corpus), number, "entry")]
        schedule = entry.schedule
        added = self._draw(NEW_DEVIATIONS_MAX + 1, number, "added")
        if schedule.natural:
            added = max(1, added)  # a window without added operations would only repeat the natural run
        elif added == 0 or len(schedule.deviations) + added > DEVIATIONS_MAX or not entry.steps:
            return replace(schedule, window=self._draw(len(WINDOWS_US), number, "window"))
        steps = [self._draw(entry.steps, number, "step", n) for n in range(added)]
        deviations = dict(schedule.deviations) | {step: 1 for step in steps}
        return replace(schedule, deviations=tuple(sorted(deviations.items())))

    def _draw(self, below: int, *place: str | int) -> int:
        """Return a number below `below` that depends on the search's seed and on `place` alone."""
        return int(uniform(self._seed, *place) * below)
