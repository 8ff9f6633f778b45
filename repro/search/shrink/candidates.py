"""Smaller cases that a finding's case may be replaced by, each with less of one thing, the boldest first."""

from collections.abc import Iterable, Iterator
from itertools import product
from math import ceil
from typing import NamedTuple, Protocol, TypeVar

from msgspec.structs import replace

from repro.run.options import RunOptions
from repro.scenario.overrides import LEAVING_FAULTS, asked_sessions
from repro.scenario.schema import Scenario
from repro.schedule.schedule import Schedule
from repro.search.play import Played
from repro.serve.config import CONTEXT_SHARE_MAX

PROMPT_TOKENS_MIN = 400  # a system prompt and one turn fit
CONTEXT_TOKENS_MIN = 512
CONTEXT_SHARES = (CONTEXT_SHARE_MAX, 0.5)  # share of the device pages that one context may take
SPLIT_SHARES = (2 * CONTEXT_SHARE_MAX, 1.5 * CONTEXT_SHARE_MAX, *CONTEXT_SHARES)  # ranks with some layers hold more
HOST_RATIO_SMALL = 2  # host to device pages: so short a host is part of the case
GAPS_MS = (10, 100, 300, 1_000, 2_000, 5_000, 8_000)
ABORTS_MS = (300, 1_000, 2_000)  # after sending: in a prompt, an answer, or the answer of one that had to wait
FIRES = (0, 1, 2, 4, 8, 16)  # hits to pass over
SHIFTS = (-1, 1, -2, 2)  # later steps move by these when an earlier deviation is dropped


class Candidates(Protocol):
    """Yields smaller cases; `base` is the scenario with the case's load."""

    def __call__(self, case: Played, *, base: Scenario) -> Iterator[RunOptions]: ...


class Memory(NamedTuple):
    """How much a target may hold."""

    context_tokens: int
    device_pages: int
    host_pages: int
    decode_pages: int | None = None  # None without prefill-decode disaggregation


def changed(case: Played, **changes: object) -> RunOptions:
    """Return the case with other overrides."""
    return replace(case.options, overrides=replace(case.options.overrides, **changes))


def sessions(case: Played, base: Scenario) -> Iterator[RunOptions]:
    """Fewer sessions."""
    for fewer in _subsets(asked_sessions(base, case.options.seed)):
        if fewer:
            yield changed(case, sessions=fewer)


def faults(case: Played, base: Scenario) -> Iterator[RunOptions]:
    """Fewer faults."""
    present = case.options.overrides.faults
    if present is None:
        present = tuple(range(len(base.faults)))
    for fewer in _subsets(present):
        yield changed(case, faults=fewer)


def turns(case: Played, base: Scenario) -> Iterator[RunOptions]:
    """Fewer turns of each session."""
    if base.load.turns is not None:
        yield from (changed(case, turns=fewer) for fewer in _smaller(base.load.turns, 1))


def requests(case: Played, base: Scenario) -> Iterator[RunOptions]:
    """Fewer turns; or, as no step may be missing before the last one that matters, an earlier end."""
    what = "turns_in_all" if case.options.schedule.natural else "requests"
    for fewer in range(1, min(case.requests, base.load.requests or case.requests)):
        yield changed(case, **{what: fewer})


def fires(case: Played, base: Scenario) -> Iterator[RunOptions]:
    """Each fault once, at an early hit, instead of now and then."""
    now = case.options.overrides.fires_after
    if base.faults and not case.options.no_faults:
        yield from (changed(case, fires_after=hits) for hits in FIRES if now is None or hits < now)


def aborts(case: Played, base: Scenario) -> Iterator[RunOptions]:
    """Clients that leave earlier: a lighter load's answers are sooner over."""
    yield from (changed(case, abort_ms=abort_ms) for abort_ms in aborts_ms(case, base))


def aborts_ms(case: Played, base: Scenario) -> list[int]:
    """Return when clients could leave that now do so later."""
    now_us = max((fault.do.time_us for fault in base.faults if fault.at in LEAVING_FAULTS), default=0.0)
    return [abort_ms for abort_ms in ABORTS_MS if abort_ms * 1e3 < now_us and not case.options.no_faults]


def gaps(case: Played, base: Scenario) -> Iterator[RunOptions]:
    """Shorter pauses."""
    yield from (changed(case, gap_ms=gap_ms) for gap_ms in gaps_ms(base))


def gaps_ms(base: Scenario) -> list[int]:
    """Return the pauses that are shorter than the load's."""
    return [gap_ms for gap_ms in GAPS_MS if gap_ms < base.load.gap_s[1] * 1e3]


def tight_memory(case: Played, base: Scenario) -> Iterator[RunOptions]:
    """Unchanged prompts, in little more memory than one of them takes."""
    yield from _in_each(case, memories(base, case.prompt_tokens))


def _in_each(case: Played, memories: Iterable[Memory]) -> Iterator[RunOptions]:
    """Yield the case in each memory; those of prefill workers alone come last."""
    alone = []
    for memory in memories:
        yield changed(case, **memory._asdict())
        if memory.decode_pages is not None:
            alone.append(memory._replace(decode_pages=case.options.overrides.decode_pages))
    yield from (changed(case, **memory._asdict()) for memory in alone)


def memories(base: Scenario, prompt_tokens: int) -> Iterator[Memory]:
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
                decode_pages = min(pages, config.pd.decode_pages) if config.pd and config.pd.decode_pages else None
                yield Memory(pages_long * config.page_tokens, pages, host_pages, decode_pages)


def smaller_memory(case: Played, base: Scenario) -> Iterator[RunOptions]:
    """Shorter contexts allow fewer pages. With prompts as long as before fewer requests fill them."""
    config, load = base.config, base.load
    size = config.page_tokens
    for pages_long in _smaller(config.context_tokens // size, CONTEXT_TOKENS_MIN // size):
        shorter = max(PROMPT_TOKENS_MIN, load.prompt_tokens * pages_long * size // config.context_tokens)
        prompts = dict.fromkeys((load.prompt_tokens, min(load.prompt_tokens, shorter)))
        for options, prompt_tokens in product(_in_each(case, _memories_for(base, pages_long)), prompts):
            yield replace(options, overrides=replace(options.overrides, prompt_tokens=prompt_tokens))


def lengths(case: Played, base: Scenario) -> Iterator[RunOptions]:
    """Shorter prompts and answers."""
    for tokens in _smaller(base.load.prompt_tokens, PROMPT_TOKENS_MIN):
        yield changed(case, prompt_tokens=tokens)
    for tokens in _smaller(base.load.answer_tokens_max, 1):
        yield changed(case, answer_tokens=tokens)


def fewer_deviations(case: Played, base: Scenario) -> Iterator[RunOptions]:
    """Drop the end of the tape, then chunks from coarse to fine, then single ones as if their step had not been."""
    deviations = case.deviations
    for count in _smaller(len(deviations), 0):
        yield _deviating(case, deviations[:count])
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
    margin = max(0, value - least)
    for share in (1.0, 0.75, 0.5, 0.25, 0.1):
        if int(margin * share):
            yield value - int(margin * share)


Item = TypeVar("Item")


def _subsets(items: tuple[Item, ...]) -> Iterator[tuple[Item, ...]]:
    """Yield what is left without chunks of the items, from all of them to single ones."""
    size = len(items)
    while size:
        for start in range(0, len(items), size):
            yield items[:start] + items[start + size :]
        size //= 2


REDUCTIONS: tuple[Candidates, ...] = (
    faults, fires, aborts, tight_memory, gaps, sessions, turns, smaller_memory, requests, lengths,
)  # fmt: skip
