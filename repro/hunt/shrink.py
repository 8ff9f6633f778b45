"""Makes a finding small: less load, fewer faults, fewer deviations, as long as the same cause is found."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import combinations, islice, product
from math import ceil
from pathlib import Path
from typing import TypeVar

from repro.base.errors import UsageError
from repro.hunt.play import Played, discard, play
from repro.lighter import lightened, present
from repro.run import RunOptions
from repro.scenario import Scenario
from repro.schedule.kept import Kept
from repro.schedule.schedule import Schedule
from repro.serve.config import CONTEXT_SHARE_MAX

PROMPT_TOKENS_MIN = 400  # a system prompt and a turn
CONTEXT_TOKENS_MIN = 512
MEETING_REQUESTS = 3  # one fills the memory, one takes it, the first comes back
MEETINGS_MAX = 28  # of eight sessions all
ANSWER_SHARE = 1 / 16  # of a tight context, beside the prompt
CONTEXT_SHARES = (CONTEXT_SHARE_MAX, 0.5)  # of the device pages: some targets ask for room for two requests
SHIFTS = (-1, 1, -2, 2)  # of later steps, when one that was taken elsewhere is gone


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
        smaller = True
        while smaller and self._left:
            before = case.options
            for candidates in (_faults, _tight, _sessions, self._meetings, _turns, _room, _requests, _lengths):
                case = self._descend(case, candidates)
            smaller = case.options != before
        case = self._natural(case)
        return case if not case.options.schedule.deviations else self._descend(case, _fewer_deviations)

    def _meetings(self, case: Played, base: Scenario) -> Iterator[RunOptions]:
        """Two of all sessions, one of which comes back: what it takes for pages to change hands and be asked for."""
        if case.requests <= MEETING_REQUESTS:
            return
        for pair in islice(combinations(present(self._scenario, case.options.seed), 2), MEETINGS_MAX):
            yield _kept(case, sessions=pair, requests=MEETING_REQUESTS)

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
        found = self._first(iter(candidates))
        if found is None:
            return case
        discard(case)
        return found

    def _descend(self, case: Played, candidates: Callable[[Played, Scenario], Iterator[RunOptions]]) -> Played:
        """Return the case after taking smaller ones for as long as there are any."""
        while True:
            base = lightened(self._scenario, case.options.kept)
            smaller = self._first(candidates(case, base))
            if smaller is None:
                return case
            discard(case)
            case = smaller

    def _first(self, candidates: Iterator[RunOptions]) -> Played | None:
        """Return the first that has the cause. What runs beside it counts as a replay too."""
        while self._left:
            untried = (options for options in candidates if options not in self._tried)
            batch = list(dict.fromkeys(islice(untried, min(self._workers, self._left))))
            if not batch:
                return None
            self._tried.update(batch)
            played = self._play(batch)
            self.replays += len(batch)
            holding = [each for each in played if self._signature in each.signatures]
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
    for fewer in range(1, case.requests):
        yield _kept(case, requests=fewer)


def _tight(case: Played, base: Scenario) -> Iterator[RunOptions]:
    """Prompts as they are, in hardly more memory than one of them takes."""
    config, load = base.config, base.load
    tokens = ceil(load.prompt_tokens * (1 + ANSWER_SHARE) / config.page_tokens) * config.page_tokens
    if CONTEXT_TOKENS_MIN <= tokens < config.context_tokens:
        for share in CONTEXT_SHARES:
            yield _kept(case, context_tokens=tokens, device_pages=ceil(tokens / share / config.page_tokens))


def _room(case: Played, base: Scenario) -> Iterator[RunOptions]:
    """Shorter contexts allow fewer pages. With prompts as long as before fewer requests fill them."""
    config, load = base.config, base.load
    size = config.page_tokens
    for pages_long in _smaller(config.context_tokens // size, CONTEXT_TOKENS_MIN // size):
        tokens = pages_long * size
        shorter = max(PROMPT_TOKENS_MIN, load.prompt_tokens * tokens // config.context_tokens)
        prompts = dict.fromkeys((load.prompt_tokens, min(load.prompt_tokens, shorter)))
        for share, prompt_tokens in product(CONTEXT_SHARES, prompts):
            pages = ceil(pages_long / share)
            yield _kept(case, context_tokens=tokens, device_pages=pages, prompt_tokens=prompt_tokens)


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
