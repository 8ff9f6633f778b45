"""Strategies choose among what causality allows, as a function of their seed, and a tape gives it again."""

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repro.base.probe import Access
from repro.schedule.pickers import RandomPicker, timed
from repro.schedule.schedule import STRATEGIES, WINDOWS_US, Schedule, deviations_of
from repro.schedule.strategies import (
    Deviating,
    Exploring,
    HoldPicker,
    PctPicker,
    PosPicker,
    SurwPicker,
    conflict,
    explorer,
    number_of,
    weights_of,
)
from tests.litmus.platform import SimPlatform
from tests.litmus.programs import Program, programs, run_program
from tests.litmus.test_programs import assert_linear_extension

WRITE = Access(True, "device", "index", 0, 1, "")
READ = Access(False, "device", "index", 0, 1, "")


@dataclass(frozen=True)
class Choice:
    stream: int
    declared: tuple[Access, ...] = (READ,)
    kind: str = "start"
    time_us: float = 0.0
    name: str = "op"

    @property
    def noticed(self) -> bool:
        return bool(self.declared) or self.kind == "timer"


class Noticing(Exploring):
    """An explorer to which every operation is one that others notice: the litmus programs touch no pages."""

    def __call__(self, choices: object) -> int:
        return super().__call__([_Noticeable(each) for each in choices])  # type: ignore[attr-defined]


class _Noticeable:
    def __init__(self, choice: object) -> None:
        self._choice = choice
        self.declared, self.noticed = (READ, WRITE), True

    def __getattr__(self, name: str) -> object:
        return getattr(self._choice, name)


def noticing(schedule: Schedule) -> Noticing:
    made = explorer(schedule)
    return Noticing(made._strategy, made._window_us)


schedules = st.builds(
    Schedule,
    strategy=st.sampled_from(STRATEGIES),
    seed=st.integers(0, 2**32),
    window=st.integers(0, len(WINDOWS_US) - 1),
    steps=st.integers(0, 40),
    weights=st.lists(st.integers(0, 5), max_size=5).map(tuple),
    deviations=st.lists(st.tuples(st.integers(0, 30), st.integers(1, 3)), max_size=5, unique_by=lambda each: each[0])
    .map(sorted)
    .map(tuple),
)


@settings(max_examples=150, deadline=None)
@given(programs, schedules)
def test_no_strategy_violates_causality_and_its_tape_gives_the_run_again(program: Program, schedule: Schedule) -> None:
    picker = noticing(schedule)
    first, same = SimPlatform(picker), SimPlatform(noticing(schedule))
    run_program(first, program)
    run_program(same, program)
    assert_linear_extension(first, program)
    assert first.events == same.events
    spelt = Schedule(window=schedule.window, deviations=deviations_of(picker.tape))
    again = SimPlatform(noticing(spelt))
    run_program(again, program)
    assert again.events == first.events


@settings(max_examples=50, deadline=None)
@given(programs)
def test_without_deviations_the_natural_order_is_kept(program: Program) -> None:
    natural, explored = SimPlatform(timed), SimPlatform(noticing(Schedule()))
    run_program(natural, program)
    run_program(explored, program)
    assert natural.events == explored.events


def test_what_nobody_notices_is_no_step_and_goes_at_its_time() -> None:
    picker = Exploring(RandomPicker(3), 1e6)
    quiet = Choice(0, declared=())
    assert [picker([quiet, Choice(1), Choice(2)]) for _ in range(20)] == [0] * 20
    assert picker.tape == []
    assert {picker([Choice(1), quiet, Choice(2)]) for _ in range(40)} == {0, 2}
    assert len(picker.tape) == 40


def test_nobody_waits_longer_than_the_window_for_what_came_later() -> None:
    picker = Exploring(lambda choices: len(choices) - 1, 100.0)
    assert picker([Choice(0), Choice(1, time_us=100.0)]) == 1
    assert picker([Choice(0), Choice(1, time_us=101.0)]) == 0


def test_a_write_conflicts_with_the_reads_of_its_layer_only() -> None:
    writes, reads = Choice(0, (WRITE,), "end"), Choice(1, (READ,), "start")
    elsewhere = Choice(1, (Access(False, "device", "index", 1, 1, ""),), "start")
    assert conflict(writes, reads) and conflict(writes, writes)
    assert not conflict(reads, reads) and not conflict(writes, elsewhere)


@given(st.integers(0, 2**32), st.integers(2, 5), st.integers(1, 50))
def test_pct_keeps_one_order_but_for_its_drops(seed: int, depth: int, steps: int) -> None:
    picker = PctPicker(seed, depth, steps)
    assert len(picker.drops) == min(depth - 1, steps) and all(0 <= step < steps for step in picker.drops)
    actors = [Choice(stream) for stream in range(6)]
    favourites = [picker(actors) for _ in range(steps)]
    changed = {step for step in range(1, steps) if favourites[step] != favourites[step - 1]}
    # At a drop the favourite is lowered before it is taken, so the change is seen at that very step.
    assert changed == {step for step in picker.drops if step}


def test_pct_lowers_below_everybody_who_was_not_lowered() -> None:
    picker = PctPicker(1, 2, 1)  # its one drop is at step 0
    dropped_first = {picker([Choice(0), Choice(1)]) for _ in range(5)}
    assert len(dropped_first) == 1
    loser = 1 - dropped_first.pop()
    assert picker([Choice(loser), Choice(7), Choice(8)]) != 0


def test_pos_keeps_the_loser_s_priority_unless_it_raced_with_the_winner() -> None:
    def takes_after(other: tuple[Access, ...]) -> set[int]:
        """Who of two bystanders goes next, over many seeds in which the first had the lower priority before."""
        nexts = set()
        for seed in range(300):
            picker = PosPicker(seed)
            taken, one, another = Choice(0, (WRITE,), "end"), Choice(1, other), Choice(2, other)
            picker._priorities = {0: 1.0, 1: 0.1, 2: 0.9}
            assert picker([taken, one, another]) == 0
            nexts.add(1 + picker([one, another]))
        return nexts

    elsewhere = Access(False, "device", "index", 5, 1, "")
    assert takes_after((READ,)) == {1, 2}
    assert takes_after((elsewhere,)) == {2}


def test_surw_takes_in_proportion_to_what_is_left() -> None:
    taken = Counter(SurwPicker(seed, (0, 4, 6))([Choice(0), Choice(1)]) for seed in range(2000))
    assert 0.75 < taken[1] / 2000 < 0.85  # 64 of 64 + 16
    picker = SurwPicker(1, (0, 2, 2))
    order = [picker([Choice(0), Choice(1)]) for _ in range(8)]
    assert sorted(order[:7]).count(1) in (3, 4)  # each has its four, and then at least one is left


def test_weights_are_logarithms_of_how_often_an_actor_was_taken() -> None:
    assert weights_of({-1: 1, 1: 9}) == (1, 0, 4)
    assert weights_of({}) == (0,)


def test_a_deviation_that_is_not_there_takes_the_last_contender() -> None:
    picker = Deviating(timed, ((1, 1), (2, 7)))
    assert [picker([Choice(0), Choice(1), Choice(2)]) for _ in range(4)] == [0, 1, 2, 0]


def test_everybody_goes_before_the_operation_that_is_held_as_long_as_the_window_lasts() -> None:
    picker = Exploring(HoldPicker(number_of("copy")), 100.0)
    copy, copies = Choice(0, name="copy"), Choice(3, name="copy")
    assert picker([copy, Choice(1, time_us=100.0)]) == 1
    assert picker([copy, Choice(1, time_us=101.0)]) == 0
    assert picker([copy, copies, Choice(1), Choice(2)]) == 2
    assert picker([copy, copies]) == 0
    assert picker([Choice(1), copy]) == 0


@given(st.text(max_size=30))
def test_the_number_of_an_operation_takes_two_bytes_of_a_token(name: str) -> None:
    assert 0 <= number_of(name) < 1 << 14


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_can_be_made(strategy: str) -> None:
    assert explorer(Schedule(strategy, 3)).tape == []
