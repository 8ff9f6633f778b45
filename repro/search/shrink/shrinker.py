"""The search for the smallest case: less load, fewer faults, fewer deviations, as long as the same cause is found."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

from msgspec.structs import replace

from repro.pool.call import Pool
from repro.run.options import RunOptions
from repro.scenario.overrides import overridden
from repro.scenario.schema import Scenario
from repro.schedule.schedule import Schedule
from repro.search.play import Played, Trial, discard, play_all, play_if_sensible
from repro.search.shrink.candidates import REDUCTIONS, Candidates, fewer_deviations
from repro.search.shrink.meetings import MEETING_REQUESTS, after_one_fault, meetings

RESERVED_SHARE = 0.2  # this share of the budget is kept for taking away one thing after another


@dataclass
class Shrinker:
    """Tries smaller cases while `budget` lasts, several at once, and takes the first that shows the cause.

    `on_smaller` hears the number of replays and each case that was taken.
    """

    scenario: Scenario
    signature: str
    pool: Pool
    root: Path
    budget: int  # replays
    workers: int
    on_smaller: Callable[[int, Played], None] = lambda replays, case: None
    replays: int = field(default=0, init=False)
    _reserved: int = field(default=0, init=False)  # replays of the budget that are kept for later
    _tried: set[RunOptions] = field(default_factory=set, init=False)
    _prompt_tokens: dict[RunOptions, int] = field(default_factory=dict, init=False)  # the longest prompt of each run

    def shrink(self, case: Played) -> Played:
        """Return the smallest case found that has the cause; `case` itself has it. Its run's folder stays."""
        case = self._in_natural_order(case)
        if case.options.schedule.natural:  # the steps of any other schedule fit its own load only
            case = self._with_few_requests(case)
        case = self._in_natural_order(self._reduced(case))
        return case if not case.options.schedule.deviations else self._descend(case, fewer_deviations)

    def _with_few_requests(self, case: Played) -> Played:
        """Return the case as one of a few requests if one shows the cause; a part of the budget is left over."""
        self._reserved = int(RESERVED_SHARE * self.budget)
        case = self._descend(case, partial(after_one_fault, scenario=self.scenario))
        base = overridden(self.scenario, case.options.overrides)
        for candidates in meetings(case, base, self._prompt_tokens):
            case = self._first_smaller(case, candidates)
            if case.requests <= MEETING_REQUESTS:
                break
        self._reserved = 0
        return case

    def _reduced(self, case: Played) -> Played:
        """Return what is left when nothing more can be taken away."""
        smaller = True
        while smaller and self._left > 0:
            before = case.options
            for candidates in REDUCTIONS:
                case = self._descend(case, candidates)
            smaller = case.options != before
        return case

    @property
    def _left(self) -> int:
        return self.budget - self._reserved - self.replays

    def _in_natural_order(self, case: Played) -> Played:
        """Return the case in the natural order, or with its schedule as plain deviations from it."""
        spelt_out = Schedule(window=case.options.schedule.window, deviations=case.deviations)
        if case.options.schedule in (Schedule(), spelt_out):
            return case
        schedules = (Schedule(), spelt_out)
        return self._first_smaller(case, [replace(case.options, schedule=each) for each in schedules])

    def _descend(self, case: Played, candidates: Candidates) -> Played:
        """Return the case after taking smaller ones for as long as there are any."""
        before = None
        while case is not before:
            before, base = case, overridden(self.scenario, case.options.overrides)
            case = self._first_smaller(case, candidates(case, base=base))
        return case

    def _first_smaller(self, case: Played, candidates: Iterable[RunOptions]) -> Played:
        """Return the first candidate that has the cause; the case where none has."""
        found = self._first(iter(candidates), case.requests)
        if found is None:
            return case
        discard(case)
        return found

    def _first(self, candidates: Iterator[RunOptions], requests_max: int) -> Played | None:
        """Return the first that has the cause, in no more requests. What runs beside it counts as a replay too."""
        while self._left > 0:
            untried = (options for options in candidates if options not in self._tried)
            batch = list(dict.fromkeys(islice(untried, min(self.workers, self._left))))
            if not batch:
                return None
            self._tried.update(batch)
            played = self._play(batch)
            self.replays += len(batch)
            self._prompt_tokens.update((each.options, each.prompt_tokens) for each in played)
            showing = [each for each in played if self.signature in each.signatures and each.requests <= requests_max]
            for each in played:
                if each not in showing[:1]:
                    discard(each)
            if showing:
                self.on_smaller(self.replays, showing[0])
                return showing[0]
        return None

    def _play(self, batch: Sequence[RunOptions]) -> list[Played]:
        trials = [Trial(self.scenario, options, str(self.root)) for options in batch]
        return play_all(self.pool, trials, play_if_sensible)
