"""Makes a finding small: less load, fewer faults, fewer deviations, as long as the same cause is found."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import combinations, islice, product
from pathlib import Path
from random import Random

from repro.base.errors import UsageError
from repro.hunt import less
from repro.hunt.less import Less
from repro.hunt.play import Played, discard, play
from repro.lighter import LEAVING, lightened, present
from repro.run import RunOptions
from repro.scenario import Scenario
from repro.schedule.schedule import Schedule

MEETING_REQUESTS = 3  # one fills the memory, one takes it, the first comes back
MEETING_SESSIONS = 4  # the first ones: six pairs
MEETING_SLACKS = (0, 2)  # pages beside the longest prompt and its answer
MEETING_GAPS_MS = (8_000, 100)  # each alone, and while the other is under way
SEEDS = 64  # of which meetings are drawn
DRAWS_AT_ONCE = 16  # first to see how long their prompts are, then in a memory for them
DRAWS = 6 * DRAWS_AT_ONCE
FEW_TURNS = 3  # with a fault: one meets it, one takes its pages


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
        self._workers = workers
        self._told = told

    def shrink(self, case: Played) -> Played:
        """Return the smallest case found that has the cause; `case` itself has it. Its run's folder is kept."""
        case = self._natural(case)
        if case.options.schedule.natural:  # the steps of a schedule fit no other load
            for candidates in (self._few, self._meetings, self._drawn):
                case = self._descend(case, candidates)
        case = self._natural(self._settled(case))
        return case if not case.options.schedule.deviations else self._descend(case, less.fewer_deviations)

    def _settled(self, case: Played) -> Played:
        """Return what is left when nothing more can be taken away."""
        smaller = True
        while smaller and self._left:
            before = case.options
            for candidates in less.EACH:
                case = self._descend(case, candidates)
            smaller = case.options != before
        return case

    def _few(self, case: Played, base: Scenario) -> Iterator[RunOptions]:
        """One or two sessions that come back soon after a fault has fired once."""
        if case.requests <= FEW_TURNS or case.options.no_faults:
            return
        first, *rest = present(self._scenario, case.options.seed)[:2]
        groups = [(first,), *((each,) for each in rest), *((first, each) for each in rest)]
        turns = min(FEW_TURNS, base.load.turns or FEW_TURNS)
        for number, fault in enumerate(self._scenario.faults):
            aborts_ms = (case.options.kept.abort_ms, *(less.ABORTS_MS if fault.at in LEAVING else ()))
            for abort_ms, sessions, gap_ms, fires in product(aborts_ms, groups, less.gaps_ms(base), less.FIRES[:2]):
                few = {"faults": (number,), "sessions": sessions, "turns": turns, "gap_ms": gap_ms, "fires": fires}
                yield less.changed(case, **few, abort_ms=abort_ms)

    def _meetings(self, case: Played, base: Scenario) -> Iterator[RunOptions]:
        """Two sessions, one of which comes back: what it takes for pages to change hands and be asked for."""
        if case.requests <= MEETING_REQUESTS:
            return
        meetings = [
            _meeting(case, base, pair, gap_ms=gap_ms)
            for gap_ms, pair in product(_meeting_gaps_ms(case, base), _meeting_pairs(case, base))
        ]
        yield from meetings
        for slack_pages, meeting in product(MEETING_SLACKS, meetings):
            yield from self._in_tight_memory(meeting, base, slack_pages)

    def _drawn(self, case: Played, base: Scenario) -> Iterator[RunOptions]:
        """Meetings as other seeds have them, of other prompts and faults: each as it is, and in one tight memory."""
        if case.requests <= MEETING_REQUESTS:
            return
        draw, pairs, gaps_ms = Random(case.options.seed), _meeting_pairs(case, base), _meeting_gaps_ms(case, base)
        aborts_ms = (case.options.kept.abort_ms, *(less.ABORTS_MS if less.leave_after_ms(base) else ()))
        for _ in range(DRAWS // DRAWS_AT_ONCE):
            drawn = []
            for _ in range(DRAWS_AT_ONCE):
                pair, gap_ms, abort_ms = draw.choice(pairs), draw.choice(gaps_ms), draw.choice(aborts_ms)
                meeting = _meeting(case, base, pair, gap_ms=gap_ms, abort_ms=abort_ms)
                drawn.append(replace(meeting, seed=draw.randint(1, SEEDS)))
            yield from drawn
            for meeting in drawn:
                tight = list(self._in_tight_memory(meeting, base, draw.choice(MEETING_SLACKS)))
                yield from draw.sample(tight, min(1, len(tight)))

    def _in_tight_memory(self, meeting: RunOptions, base: Scenario, slack_pages: int) -> Iterator[RunOptions]:
        """Yield a meeting that was played in memories for its own longest prompt."""
        tokens = self._prompt_tokens.get(meeting, 0) + slack_pages * base.config.page_tokens
        for memory in less.memories(base, tokens):
            yield replace(meeting, kept=replace(meeting.kept, **memory._asdict()))

    @property
    def _left(self) -> int:
        return self._budget - self.replays

    def _natural(self, case: Played) -> Played:
        """Return the case in the natural order, or with its schedule as plain deviations from it."""
        window = case.options.schedule.window
        spelt = Schedule(window=window, deviations=case.deviations)
        candidates = [replace(case.options, schedule=each) for each in (Schedule(), spelt)]
        if case.options.schedule in (Schedule(), spelt):
            return case
        found = self._first(iter(candidates), case.requests)
        if found is None:
            return case
        discard(case)
        return found

    def _descend(self, case: Played, candidates: Less) -> Played:
        """Return the case after taking smaller ones for as long as there are any."""
        while True:
            base = lightened(self._scenario, case.options.kept)
            smaller = self._first(candidates(case, base), case.requests)
            if smaller is None:
                return case
            discard(case)
            case = smaller

    def _first(self, candidates: Iterator[RunOptions], requests_max: int) -> Played | None:
        """Return the first that has the cause, in no more requests. What runs beside it counts as a replay too."""
        while self._left:
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


def _meeting_pairs(case: Played, base: Scenario) -> list[tuple[int, ...]]:
    return list(combinations(present(base, case.options.seed)[:MEETING_SESSIONS], 2))


def _meeting_gaps_ms(case: Played, base: Scenario) -> list[int | None]:
    return [case.options.kept.gap_ms, *(gap_ms for gap_ms in MEETING_GAPS_MS if gap_ms in less.gaps_ms(base))]


def _meeting(case: Played, base: Scenario, pair: tuple[int, ...], **changes: object) -> RunOptions:
    turns = base.load.turns and min(base.load.turns, MEETING_REQUESTS - 1)
    return less.changed(case, sessions=pair, turns=turns, dealt=MEETING_REQUESTS, **changes)
