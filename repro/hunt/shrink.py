"""Makes a finding small: less load, fewer faults, fewer deviations, as long as the same cause is found."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import combinations, islice, product
from math import ceil
from pathlib import Path
from random import Random
from typing import NamedTuple, TypeVar

from repro.base.errors import UsageError
from repro.hunt.play import Played, discard, play
from repro.lighter import LEAVING, lightened, present
from repro.run import RunOptions
from repro.scenario import Scenario
from repro.schedule.kept import Kept
from repro.schedule.schedule import Schedule
from repro.serve.config import CONTEXT_SHARE_MAX

PROMPT_TOKENS_MIN = 400  # a system prompt and a turn
CONTEXT_TOKENS_MIN = 512
MEETING_REQUESTS = 3  # one fills the memory, one takes it, the first comes back
MEETING_SESSIONS = 4  # the first ones: six pairs
MEETING_SLACKS = (0, 2)  # pages beside the longest prompt and its answer
MEETING_GAPS_MS = (8_000, 100)  # each alone, and while the other is under way
SEEDS = 64  # more of which meetings are drawn
DRAWS_AT_ONCE = 16  # first to see how long their prompts are, then in a memory for them
DRAWS = 6 * DRAWS_AT_ONCE
CONTEXT_SHARES = (CONTEXT_SHARE_MAX, 0.5)  # of the device pages
SPLIT_SHARES = (2 * CONTEXT_SHARE_MAX, 1.5 * CONTEXT_SHARE_MAX, *CONTEXT_SHARES)  # ranks with some layers hold more
HOST_RATIO_SMALL = 2  # host to device pages: so short a host is part of the case
GAPS_MS = (10, 100, 300, 1_000, 2_000, 5_000, 8_000)
ABORTS_MS = (300, 1_000, 2_000)  # after sending: in a prompt, an answer, or the answer of one that had to wait
FIRES = (0, 1, 2, 4, 8, 16)  # hits to pass over
FEW_TURNS = 3  # with a fault: one meets it, one takes its pages
SHIFTS = (-1, 1, -2, 2)  # of later steps, when one that was taken elsewhere is gone


class Memory(NamedTuple):
    """How much a target may hold."""

    context_tokens: int
    device_pages: int
    host_pages: int
    decode_pages: int | None = None  # with pd


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
            case = self._descend(self._descend(case, self._few), self._meetings)
        case = self._natural(self._settled(case))
        return case if not case.options.schedule.deviations else self._descend(case, _fewer_deviations)

    def _settled(self, case: Played) -> Played:
        """Return what is left when nothing more can be taken away."""
        smaller = True
        while smaller and self._left:
            before = case.options
            for candidates in (_faults, _fires, _aborts, _tight, _gaps, _sessions, _turns, _room, _requests, _lengths):
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
            aborts_ms = (case.options.kept.abort_ms, *(ABORTS_MS if fault.at in LEAVING else ()))
            for abort_ms, sessions, gap_ms, fires in product(aborts_ms, groups, _gaps_ms(base), FIRES[:2]):
                few = {"faults": (number,), "sessions": sessions, "turns": turns, "gap_ms": gap_ms, "fires": fires}
                yield _kept(case, **few, abort_ms=abort_ms)

    def _meetings(self, case: Played, base: Scenario) -> Iterator[RunOptions]:
        """Two sessions, one of which comes back: what it takes for pages to change hands and be asked for."""
        if case.requests <= MEETING_REQUESTS:
            return
        kept = case.options.kept
        pairs = list(combinations(present(base, case.options.seed)[:MEETING_SESSIONS], 2))
        gaps_ms = [kept.gap_ms, *(gap_ms for gap_ms in MEETING_GAPS_MS if gap_ms in _gaps_ms(base))]
        meetings = [_meeting(case, base, pair, gap_ms=gap_ms) for gap_ms, pair in product(gaps_ms, pairs)]
        yield from meetings
        for slack_pages, meeting in product(MEETING_SLACKS, meetings):
            yield from self._in_tight_memory(meeting, base, slack_pages)
        draw, aborts_ms = Random(case.options.seed), (kept.abort_ms, *(ABORTS_MS if _leave_after_ms(base) else ()))
        for _ in range(DRAWS // DRAWS_AT_ONCE):
            drawn = [
                replace(
                    _meeting(case, base, draw.choice(pairs), gap_ms=draw.choice(gaps_ms), abort_ms=draw.choice(aborts_ms)),
                    seed=case.options.seed + draw.randint(1, SEEDS),
                )
                for _ in range(DRAWS_AT_ONCE)
            ]
            yield from drawn
            for meeting in drawn:
                tight = list(self._in_tight_memory(meeting, base, draw.choice(MEETING_SLACKS)))
                yield from draw.sample(tight, min(1, len(tight)))

    def _in_tight_memory(self, meeting: RunOptions, base: Scenario, slack_pages: int) -> Iterator[RunOptions]:
        """Yield a meeting that was played in memories for its own longest prompt."""
        tokens = self._prompt_tokens.get(meeting, 0) + slack_pages * base.config.page_tokens
        for memory in _memories(base, tokens):
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

    def _descend(self, case: Played, candidates: Callable[[Played, Scenario], Iterator[RunOptions]]) -> Played:
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


def _kept(case: Played, **changes: object) -> RunOptions:
    kept: Kept = replace(case.options.kept, **changes)  # type: ignore[arg-type]
    return replace(case.options, kept=kept)


def _meeting(case: Played, base: Scenario, pair: tuple[int, ...], **changes: object) -> RunOptions:
    turns = base.load.turns and min(base.load.turns, MEETING_REQUESTS - 1)
    return _kept(case, sessions=pair, turns=turns, dealt=MEETING_REQUESTS, **changes)


def _sessions(case: Played, base: Scenario) -> Iterator[RunOptions]:
    for fewer in _subsets(present(base, case.options.seed)):
        if fewer:
            yield _kept(case, sessions=fewer)


def _faults(case: Played, base: Scenario) -> Iterator[RunOptions]:
    present = case.options.kept.faults
    if present is None:
        present = tuple(range(len(base.faults)))
    for fewer in _subsets(present):
        yield _kept(case, faults=fewer)


def _turns(case: Played, base: Scenario) -> Iterator[RunOptions]:
    if base.load.turns is not None:
        yield from (_kept(case, turns=fewer) for fewer in _smaller(base.load.turns, 1))


def _requests(case: Played, base: Scenario) -> Iterator[RunOptions]:
    """Fewer turns; or, as no step may be missing before the last one that matters, an earlier end."""
    what = "dealt" if case.options.schedule.natural else "requests"
    for fewer in range(1, min(case.requests, base.load.requests or case.requests)):
        yield _kept(case, **{what: fewer})


def _fires(case: Played, base: Scenario) -> Iterator[RunOptions]:
    """Each fault once, at an early hit, instead of now and then."""
    now = case.options.kept.fires
    if base.faults and not case.options.no_faults:
        yield from (_kept(case, fires=hits) for hits in FIRES if now is None or hits < now)


def _aborts(case: Played, base: Scenario) -> Iterator[RunOptions]:
    """Clients that leave earlier: a lighter load's answers are sooner over."""
    now_ms = _leave_after_ms(base)
    yield from (_kept(case, abort_ms=abort_ms) for abort_ms in ABORTS_MS if abort_ms < now_ms)


def _leave_after_ms(base: Scenario) -> float:
    """Return how long after sending clients leave at the latest; 0 where no fault makes them."""
    return max((fault.do.us / 1e3 for fault in base.faults if fault.at in LEAVING), default=0.0)


def _gaps(case: Played, base: Scenario) -> Iterator[RunOptions]:
    yield from (_kept(case, gap_ms=gap_ms) for gap_ms in _gaps_ms(base))


def _gaps_ms(base: Scenario) -> list[int]:
    return [gap_ms for gap_ms in GAPS_MS if gap_ms < base.load.gap_s[1] * 1e3]


def _tight(case: Played, base: Scenario) -> Iterator[RunOptions]:
    """Prompts as they are, in hardly more memory than one of them takes."""
    yield from (_kept(case, **memory._asdict()) for memory in _memories(base, case.prompt_tokens))


def _memories(base: Scenario, prompt_tokens: int) -> Iterator[Memory]:
    """Yield memories hardly larger than the longest prompt and its answer."""
    size = base.config.page_tokens
    pages_long = ceil((prompt_tokens + base.load.answer_tokens_max) / size)
    if CONTEXT_TOKENS_MIN <= pages_long * size <= base.config.context_tokens:
        yield from _memories_for(base, pages_long)


def _memories_for(base: Scenario, pages_long: int) -> Iterator[Memory]:
    """Yield smaller memories for contexts of so many pages; tiers in proportion, and a small host even smaller."""
    config = base.config
    for share in CONTEXT_SHARES if config.layersplit is None else SPLIT_SHARES:
        pages = ceil(pages_long / share)
        if pages < config.device_pages:
            in_proportion = ceil(config.host_pages * pages / config.device_pages)
            small = [pages] if config.host_pages < HOST_RATIO_SMALL * config.device_pages else []
            for host_pages in dict.fromkeys((*small, in_proportion)):
                yield Memory(pages_long * config.page_tokens, pages, host_pages, None if config.pd is None else pages)


def _room(case: Played, base: Scenario) -> Iterator[RunOptions]:
    """Shorter contexts allow fewer pages. With prompts as long as before fewer requests fill them."""
    config, load = base.config, base.load
    size = config.page_tokens
    for pages_long in _smaller(config.context_tokens // size, CONTEXT_TOKENS_MIN // size):
        shorter = max(PROMPT_TOKENS_MIN, load.prompt_tokens * pages_long * size // config.context_tokens)
        prompts = dict.fromkeys((load.prompt_tokens, min(load.prompt_tokens, shorter)))
        for memory, prompt_tokens in product(_memories_for(base, pages_long), prompts):
            yield _kept(case, **memory._asdict(), prompt_tokens=prompt_tokens)


def _lengths(case: Played, base: Scenario) -> Iterator[RunOptions]:
    for tokens in _smaller(base.load.prompt_tokens, PROMPT_TOKENS_MIN):
        yield _kept(case, prompt_tokens=tokens)
    for tokens in _smaller(base.load.answer_tokens_max, 1):
        yield _kept(case, answer_tokens=tokens)


def _fewer_deviations(case: Played, base: Scenario) -> Iterator[RunOptions]:
    """Drop the end of the tape, then chunks from coarse to fine, then single ones as if their step had not been."""
    deviations = case.deviations
    for kept in _smaller(len(deviations), 0):
        yield _deviating(case, deviations[:kept])
    for fewer in _subsets(deviations):
        yield _deviating(case, fewer)
    for place, shift in product(range(len(deviations)), SHIFTS):
        later = tuple((step + shift, chosen) for step, chosen in deviations[place + 1 :])
        if not later or later[0][0] > (deviations[place - 1][0] if place else -1):
            yield _deviating(case, deviations[:place] + later)


def _deviating(case: Played, deviations: tuple[tuple[int, int], ...]) -> RunOptions:
    return replace(case.options, schedule=Schedule(window=case.options.schedule.window, deviations=deviations))


def _smaller(value: int, least: int) -> Iterator[int]:
    """Yield values from `least` up to below `value`, the boldest first."""
    room = max(0, value - least)
    for share in (1.0, 0.75, 0.5, 0.25, 0.1):
        if int(room * share):
            yield value - int(room * share)


Item = TypeVar("Item")


def _subsets(items: tuple[Item, ...]) -> Iterator[tuple[Item, ...]]:
    """Yield what is left without chunks of the items, from all of them to single ones."""
    size = len(items)
    while size:
        for start in range(0, len(items), size):
            yield items[:start] + items[start + size :]
        size //= 2
