"""Makes a finding small: less load, fewer faults, fewer deviations, as long as the same cause is found."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import combinations, islice, product
from pathlib import Path
from typing import TypeVar

from msgspec.structs import replace

from repro.base.errors import UsageError
from repro.base.rng import uniform
from repro.run.run import RunOptions
from repro.scenario.overrides import LEAVING_FAULTS, asked_sessions, overridden
from repro.scenario.schema import Scenario
from repro.schedule.schedule import Schedule
from repro.search.play import Played, discard, play
from repro.search.shrink import candidates as less
from repro.search.shrink.candidates import Less

MEETING_REQUESTS = 3  # one fills the memory, one takes it, the first comes back
MEETING_SESSIONS = 4  # the first ones: six pairs
MEETING_SLACKS = (0, 2)  # pages beside the longest prompt and its answer
MEETING_GAPS_MS = (8_000, 100)  # each alone, and while the other is under way
SEEDS = 64  # of which meetings are drawn
DRAWS_AT_ONCE = 16  # first to see how long their prompts are, then in a memory for them
DRAWS = 6 * DRAWS_AT_ONCE
SETTLING_SHARE = 0.2  # of the budget, for taking away one thing after another
FEW_TURNS = 3  # with a fault: one meets it, one takes its pages

Item = TypeVar("Item")


class Shrinker:
    """Tries smaller cases while `budget` lasts, several at once, and keeps the first that shows the cause."""

    def __init__(
        self,
        scenario: Scenario,
        signature: str,
        pool: ProcessPoolExecutor,
        *,
        root: Path,
        budget: int,
        workers: int,
        told: Callable[[int, Played], None],
    ) -> None:
        self.replays = 0
        self._tried: set[RunOptions] = set()
        self._prompt_tokens: dict[RunOptions, int] = {}  # of the longest prompt, where it was played
        self._scenario = scenario
        self._signature = signature
        self._pool = pool
        self._root = root
        self._budget = budget
        self._kept_back = 0  # of it, for what comes after
        self._workers = workers
        self._told = told

    def shrink(self, case: Played) -> Played:
        """Return the smallest case found that has the cause; `case` itself has it. Its run's folder is kept."""
        case = self._natural(case)
        if case.options.schedule.natural:  # the steps of a schedule fit no other load
            case = self._sought(case)
        case = self._natural(self._settled(case))
        return case if not case.options.schedule.deviations else self._descend(case, less.fewer_deviations)

    def _sought(self, case: Played) -> Played:
        """Return the case as one of a few requests where there is one; a part of the budget is kept for the rest."""
        self._kept_back = int(SETTLING_SHARE * self._budget)
        case = self._descend(case, self._few)
        for meetings in self._meetings(case, overridden(self._scenario, case.options.overrides)):
            case = self._taken(case, meetings)
            if case.requests <= MEETING_REQUESTS:
                break
        self._kept_back = 0
        return case

    def _settled(self, case: Played) -> Played:
        """Return what is left when nothing more can be taken away."""
        smaller = True
        while smaller and self._left > 0:
            before = case.options
            for candidates in less.EACH:
                case = self._descend(case, candidates)
            smaller = case.options != before
        return case

    def _few(self, case: Played, base: Scenario) -> Iterator[RunOptions]:
        """One or two sessions that come back soon after a fault has fired once."""
        if case.requests <= FEW_TURNS or case.options.no_faults:
            return
        first, *rest = asked_sessions(self._scenario, case.options.seed)[:2]
        groups = [(first,), *((each,) for each in rest), *((first, each) for each in rest)]
        turns = min(FEW_TURNS, base.load.turns or FEW_TURNS)
        for number, fault in enumerate(self._scenario.faults):
            aborts_ms = (
                case.options.overrides.abort_ms,
                *(less.aborts_ms(case, base) if fault.at in LEAVING_FAULTS else ()),
            )
            for abort_ms, sessions, gap_ms, fires in product(aborts_ms, groups, less.gaps_ms(base), less.FIRES[:2]):
                few = {
                    "faults": (number,),
                    "sessions": sessions,
                    "turns": turns,
                    "gap_ms": gap_ms,
                    "fires_after": fires,
                }
                yield less.changed(case, **few, abort_ms=abort_ms)

    def _meetings(self, case: Played, base: Scenario) -> Iterator[list[RunOptions]]:
        """Yield meetings of two sessions, one of which comes back: so pages change hands and are asked for.

        Each list is to be played before the next is asked for: it may be the same in memories for their prompts. Those
        of this seed come first, then some of others, which have other prompts and faults.
        """
        pairs = list(combinations(asked_sessions(base, case.options.seed)[:MEETING_SESSIONS], 2))
        if case.requests <= MEETING_REQUESTS or not pairs:
            return
        overrides = case.options.overrides
        gaps_ms = [overrides.gap_ms, *(gap_ms for gap_ms in MEETING_GAPS_MS if gap_ms in less.gaps_ms(base))]
        aborts_ms = [overrides.abort_ms, *less.aborts_ms(case, base)]
        meetings = [_meeting(case, base, pair, gap_ms=gap_ms) for gap_ms, pair in product(gaps_ms, pairs)]
        yield meetings
        slack = product(MEETING_SLACKS, meetings)
        yield [tight for slack_pages, each in slack for tight in self._in_tight_memory(each, base, slack_pages)]
        for first in range(0, DRAWS, DRAWS_AT_ONCE):
            draws = [partial(_drawn, case.options.seed, number) for number in range(first, first + DRAWS_AT_ONCE)]
            drawn = [
                replace(
                    _meeting(
                        case, base, draw(pairs, "pair"), gap_ms=draw(gaps_ms, "gap"), abort_ms=draw(aborts_ms, "abort")
                    ),
                    seed=draw(range(SEEDS), "seed"),
                )
                for draw in draws
            ]
            yield drawn
            memories = [
                self._in_tight_memory(each, base, draw(MEETING_SLACKS, "slack"))
                for draw, each in zip(draws, drawn, strict=True)
            ]
            yield [draw(tight, "memory") for draw, tight in zip(draws, memories, strict=True) if tight]

    def _in_tight_memory(self, meeting: RunOptions, base: Scenario, slack_pages: int) -> list[RunOptions]:
        """Return a meeting that was played in memories for its own longest prompt."""
        tokens = self._prompt_tokens.get(meeting, 0) + slack_pages * base.config.page_tokens
        memories = less.memories(base, tokens)
        return [replace(meeting, overrides=replace(meeting.overrides, **memory._asdict())) for memory in memories]

    @property
    def _left(self) -> int:
        return self._budget - self._kept_back - self.replays

    def _natural(self, case: Played) -> Played:
        """Return the case in the natural order, or with its schedule as plain deviations from it."""
        spelt = Schedule(window=case.options.schedule.window, deviations=case.deviations)
        if case.options.schedule in (Schedule(), spelt):
            return case
        return self._taken(case, [replace(case.options, schedule=each) for each in (Schedule(), spelt)])

    def _descend(self, case: Played, candidates: Less) -> Played:
        """Return the case after taking smaller ones for as long as there are any."""
        before = None
        while case is not before:
            before, base = case, overridden(self._scenario, case.options.overrides)
            case = self._taken(case, candidates(case, base))
        return case

    def _taken(self, case: Played, candidates: Iterable[RunOptions]) -> Played:
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
            batch = list(dict.fromkeys(islice(untried, min(self._workers, self._left))))
            if not batch:
                return None
            self._tried.update(batch)
            played = self._play(batch)
            self.replays += len(batch)
            self._prompt_tokens.update((each.options, each.prompt_tokens) for each in played)
            holding = [each for each in played if self._signature in each.signatures and each.requests <= requests_max]
            for each in played:
                if each not in holding[:1]:
                    discard(each)
            if holding:
                self._told(self.replays, holding[0])
                return holding[0]
        return None

    def _play(self, batch: Sequence[RunOptions]) -> list[Played]:
        futures = [self._pool.submit(play, self._scenario, options, self._root) for options in batch]
        played = []
        for future, options in zip(futures, batch, strict=True):
            try:
                played.append(future.result())
            except UsageError as error:  # so little load makes no sense
                played.append(Played(options, error=str(error)))
        return played


def _meeting(case: Played, base: Scenario, pair: tuple[int, ...], **changes: object) -> RunOptions:
    turns = base.load.turns and min(base.load.turns, MEETING_REQUESTS - 1)
    return less.changed(case, sessions=pair, turns=turns, turns_in_all=MEETING_REQUESTS, **changes)


def _drawn(seed: int, number: int, among: Sequence[Item], what: str) -> Item:
    return among[int(uniform(seed, "meeting", number, what) * len(among))]
