"""Loads of two or three requests in which a race can still happen: pages change hands and are asked for again."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import combinations, product
from typing import TypeVar

from msgspec.structs import replace

from repro.base.rng import uniform
from repro.run.options import RunOptions
from repro.scenario.overrides import LEAVING_FAULTS, asked_sessions
from repro.scenario.schema import Scenario
from repro.search.play import Played
from repro.search.shrink.candidates import FIRES, aborts_ms, changed, gaps_ms, memories

MEETING_REQUESTS = 3  # one fills the memory, one takes it, the first comes back
MEETING_SESSIONS = 4  # the first ones: six pairs
MEETING_SLACKS = (0, 2)  # pages beside the longest prompt and its answer
MEETING_GAPS_MS = (8_000, 100)  # each session alone, and while the other is under way
SEEDS = 64  # meetings are drawn from them
DRAWS_AT_ONCE = 16  # first to see how long their prompts are, then in a memory for them
DRAWS = 6 * DRAWS_AT_ONCE
FAULT_TURNS = 3  # one meets the fault, one takes its pages

Item = TypeVar("Item")


def after_one_fault(case: Played, *, scenario: Scenario, base: Scenario) -> Iterator[RunOptions]:
    """Yield loads of one or two sessions that come back soon after a fault has fired once.

    `scenario` has the whole load, `base` the case's.
    """
    if case.requests <= FAULT_TURNS or case.options.no_faults:
        return
    first, *rest = asked_sessions(scenario, case.options.seed)[:2]
    groups = [(first,), *((each,) for each in rest), *((first, each) for each in rest)]
    turns = min(FAULT_TURNS, base.load.turns or FAULT_TURNS)
    for number, fault in enumerate(scenario.faults):
        earlier_ms = aborts_ms(case, base) if fault.at in LEAVING_FAULTS else ()
        aborts = (case.options.overrides.abort_ms, *earlier_ms)
        for abort_ms, sessions, gap_ms, fires in product(aborts, groups, gaps_ms(base), FIRES[:2]):
            yield changed(
                case, faults=(number,), sessions=sessions, turns=turns, gap_ms=gap_ms, fires_after=fires,
                abort_ms=abort_ms,
            )  # fmt: skip


def meetings(case: Played, base: Scenario, prompt_tokens: Mapping[RunOptions, int]) -> Iterator[list[RunOptions]]:
    """Yield lists of meetings of two sessions, one of which comes back.

    Play each list before the next is asked for, and note in `prompt_tokens` the longest prompt of each run: a list may
    be the one before in memories that hardly hold these prompts. Meetings with the case's own seed come first. Those
    with other seeds, drawn after them, have other prompts and faults.
    """
    pairs = list(combinations(asked_sessions(base, case.options.seed)[:MEETING_SESSIONS], 2))
    if case.requests <= MEETING_REQUESTS or not pairs:
        return
    gaps = [case.options.overrides.gap_ms, *(each for each in MEETING_GAPS_MS if each in gaps_ms(base))]
    aborts = [case.options.overrides.abort_ms, *aborts_ms(case, base)]
    loose = [_meeting(case, base, pair, gap_ms=gap_ms) for gap_ms, pair in product(gaps, pairs)]
    yield loose
    slacks = product(MEETING_SLACKS, loose)
    yield [tight for slack, each in slacks for tight in _in_tight_memory(each, base, slack, prompt_tokens)]
    for first in range(0, DRAWS, DRAWS_AT_ONCE):
        draws = [partial(_drawn, case.options.seed, number) for number in range(first, first + DRAWS_AT_ONCE)]
        drawn = []
        for draw in draws:
            met = _meeting(case, base, draw(pairs, "pair"), gap_ms=draw(gaps, "gap"), abort_ms=draw(aborts, "abort"))
            drawn.append(replace(met, seed=draw(range(SEEDS), "seed")))
        yield drawn
        tights = [
            _in_tight_memory(each, base, draw(MEETING_SLACKS, "slack"), prompt_tokens)
            for draw, each in zip(draws, drawn, strict=True)
        ]
        yield [draw(tight, "memory") for draw, tight in zip(draws, tights, strict=True) if tight]


def _meeting(case: Played, base: Scenario, pair: tuple[int, ...], **changes: object) -> RunOptions:
    turns = base.load.turns and min(base.load.turns, MEETING_REQUESTS - 1)
    return changed(case, sessions=pair, turns=turns, turns_in_all=MEETING_REQUESTS, **changes)


def _in_tight_memory(
    meeting: RunOptions, base: Scenario, slack_pages: int, prompt_tokens: Mapping[RunOptions, int]
) -> list[RunOptions]:
    """Return a meeting that was played in memories for its own longest prompt."""
    tokens = prompt_tokens.get(meeting, 0) + slack_pages * base.config.page_tokens
    tight = [replace(meeting.overrides, **memory._asdict()) for memory in memories(base, tokens)]
    return [replace(meeting, overrides=overrides) for overrides in tight]


def _drawn(seed: int, number: int, among: Sequence[Item], what: str) -> Item:
    return among[int(uniform(seed, "meeting", number, what) * len(among))]
