"""What is played next, and what a search learns."""

from pathlib import Path

import pytest

from repro.run.options import RunOptions
from repro.schedule.schedule import WINDOWS_US, Schedule
from repro.schedule.strategies import number_of
from repro.search.play import Played
from repro.search.searcher import (
    DEVIATIONS_MAX,
    HOLD,
    MUTATION,
    NEW_DEVIATIONS_MAX,
    SEARCHES,
    Corpus,
    Entry,
    Search,
    Searcher,
)


def outcome(schedule: Schedule | None = None, orders: str = "", steps: int = 100) -> Played:
    options = RunOptions(schedule=schedule or Schedule())
    return Played(options, "clean", orders=frozenset(orders), steps=steps, weights=(3, 4))


def started(search: Search = "portfolio", seed: int = 0) -> Searcher:
    searcher = Searcher(search, seed)
    arm, schedule = searcher.propose(0)
    searcher.learn(arm, outcome(schedule, "ab"))
    return searcher


@pytest.mark.parametrize("search", SEARCHES)
def test_the_first_is_natural_and_tells_the_others_how_much_there_is(search: Search) -> None:
    searcher = started(search)
    arm, schedule = searcher.propose(1)
    if search != "portfolio":
        assert arm == schedule.strategy == search
    if schedule.strategy.startswith("pct"):
        assert schedule.steps == 100
    if schedule.strategy == "surw":
        assert schedule.weights == (3, 4)


def test_each_number_is_another_schedule_and_the_same_in_another_hunt() -> None:
    proposed = [started("pos").propose(number)[1] for number in range(1, 40)]
    assert len(set(proposed)) == 39
    assert proposed == [started("pos").propose(number)[1] for number in range(1, 40)]
    assert {schedule.window for schedule in proposed} == set(range(len(WINDOWS_US)))


def test_only_what_brings_new_orders_joins_the_corpus() -> None:
    searcher = started()
    assert searcher.learn("pos", outcome(Schedule("pos", 1), "abc")) == 1
    assert searcher.learn("pos", outcome(Schedule("pos", 2), "cab")) == 0
    assert [entry.schedule for entry in searcher.corpus] == [Schedule(), Schedule("pos", 1)]


@pytest.mark.parametrize("search", SEARCHES)
def test_a_search_goes_on_behind_the_schedules_of_the_one_before(search: Search) -> None:
    first = started(search)
    played = {first.propose(number)[1] for number in range(1, 40)}
    left = first.corpus_left()
    assert left.taken == 39 and left.entries == tuple(first.corpus)
    second = Searcher(search, 0, left)
    second.learn("natural", outcome(second.propose(0)[1], "ab"))
    arms = [second.propose(number) for number in range(1, 40)]
    assert played.isdisjoint(schedule for arm, schedule in arms if arm != MUTATION)
    assert second.corpus_left().taken == 78


def suspecting(*suspects: str, operations: str = "") -> Played:
    return Played(RunOptions(), "anomaly", suspects=suspects, operations=tuple(operations.split()))


def test_a_portfolio_first_holds_back_what_nothing_orders() -> None:
    searcher = Searcher("portfolio", 0)
    searcher.learn("natural", suspecting("copy", "read"))
    proposed = [searcher.propose(number) for number in range(1, 2 * len(WINDOWS_US) + 1)]
    assert {arm for arm, _ in proposed} == {HOLD}
    assert [schedule.seed for _, schedule in proposed[:2]] == [number_of("copy"), number_of("read")]
    held = {(schedule.seed, schedule.window) for _, schedule in proposed}
    assert held == {(number_of(name), window) for name in ("copy", "read") for window in range(len(WINDOWS_US))}
    assert HOLD not in {searcher.propose(number)[0] for number in range(100, 160)}


def test_a_portfolio_then_holds_back_the_others_for_the_longest_time() -> None:
    searcher = Searcher("portfolio", 0)
    searcher.learn("natural", suspecting("copy", operations="rare copy frequent"))
    proposed = [searcher.propose(number) for number in range(1, len(WINDOWS_US) + 3)]
    assert {arm for arm, _ in proposed} == {HOLD}
    longest = len(WINDOWS_US) - 1
    held = [(schedule.seed, schedule.window) for _, schedule in proposed[len(WINDOWS_US) :]]
    assert held == [(number_of("rare"), longest), (number_of("frequent"), longest)]


def test_what_another_schedule_makes_suspect_is_held_next() -> None:
    searcher = started()
    searcher.learn("pos", suspecting("free"))
    arm, schedule = searcher.propose(2)
    assert (arm, schedule.strategy, schedule.seed) == (HOLD, "hold", number_of("free"))


def test_a_search_does_not_hold_back_again_what_the_one_before_did() -> None:
    first = Searcher("portfolio", 0)
    first.learn("natural", suspecting("copy", operations="copy store"))
    first.propose(1)
    second = Searcher("portfolio", 0, first.corpus_left())
    second.learn("natural", suspecting("copy", operations="copy store"))
    proposed = [second.propose(number) for number in range(1, 300)]
    held = [(schedule.seed, schedule.window) for arm, schedule in proposed if arm == HOLD]
    assert len(held) == len(set(held)) == 2 * len(WINDOWS_US) - 1


@pytest.mark.parametrize("search", [search for search in SEARCHES if search != "portfolio"])
def test_a_single_strategy_holds_nothing_back(search: Search) -> None:
    searcher = Searcher(search, 0)
    searcher.learn("natural", suspecting("copy", operations="copy"))
    assert {searcher.propose(number)[0] for number in range(1, 30)} == {search}


def test_an_arm_that_pays_is_taken_more_often() -> None:
    searcher = started()
    for number in range(20):
        searcher.learn("pos", outcome(Schedule("pos", number), orders=chr(300 + number)))
        for arm in ("random", "pct2", "pct3", "pct5", "surw", MUTATION):
            searcher.learn(arm, outcome())
    arms = [searcher.propose(number)[0] for number in range(100, 300)]
    assert arms.count("pos") > 100 > arms.count("random")


def test_mutants_differ_from_their_parent_and_fit_a_token() -> None:
    parent = Schedule("pct3", 5, 1, 100, deviations=tuple((step, 1) for step in range(DEVIATIONS_MAX - 1)))
    searcher = Searcher("portfolio", 0, Corpus(entries=(Entry(parent, 100, 3),)))
    mutants = {searcher._mutant(number) for number in range(60)}
    assert len(mutants) > 10
    for mutant in mutants:
        assert not mutant.natural
        assert (mutant.strategy, mutant.seed, mutant.steps) == ("pct3", 5, 100)
        assert len(mutant.deviations) <= DEVIATIONS_MAX
        assert list(mutant.deviations) == sorted(mutant.deviations)
        assert all(0 <= step < 100 for step, _ in mutant.deviations)


@pytest.mark.parametrize("steps", [0, 100])
def test_a_mutant_of_the_natural_schedule_is_another_run(steps: int) -> None:
    searcher = Searcher("portfolio", 0, Corpus(entries=(Entry(Schedule(), steps, 3),)))
    mutants = [searcher._mutant(number) for number in range(60)]
    assert not any(mutant.natural for mutant in mutants)
    assert all(1 <= len(mutant.deviations) <= NEW_DEVIATIONS_MAX for mutant in mutants)


def test_an_empty_corpus_is_not_mutated(tmp_path: Path) -> None:
    searcher = Searcher("portfolio", 0)
    assert MUTATION not in {searcher.propose(number)[0] for number in range(1, 100)}
