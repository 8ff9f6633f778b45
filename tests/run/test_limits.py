"""A limit ends the load, is told, and leaves no fingerprint that depends on a wall clock."""

from pathlib import Path

from repro.load.listener import Progress
from repro.record.view import open_run
from repro.run.limits import LimitWatch
from repro.run.options import RunOptions
from repro.scenario.schema import parse
from tests.small import small_scenario
from tests.tiny import run_tiny, tiny_scenario


class Clock:
    """A clock that stands still until it is told to go."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_the_first_limit_that_is_reached_is_the_one_that_is_told() -> None:
    clock, events = Clock(), [0]
    watch = LimitWatch(10.0, 2, clock, lambda: events[0])
    watch.count_request()
    watch.count_request()
    assert watch.cut is None and not watch.check_time() and watch.seconds_left == 10.0
    events[0], clock.now_s = 5, 10.0
    assert watch.check_time() and watch.by_accident and watch.cut.event == 5
    events[0] = 9
    watch.count_request()
    watch.interrupt()
    assert watch.cut.why == "the limit of 10 s (limits.wall_s) was reached" and watch.cut.event == 5


def test_a_limit_of_requests_cuts_in_virtual_order_and_keeps_the_token(tmp_path: Path) -> None:
    scenario = tiny_scenario(end="[limits]\nrequests = 2")
    first, second = run_tiny(tmp_path, scenario), run_tiny(tmp_path, scenario)
    assert first.verdict.word == "inconclusive"
    assert "the limit of 2 requests (limits.requests) was reached" in first.verdict.why[0]
    assert first.fingerprint == second.fingerprint and first.verdict.token
    records = open_run(first.path).requests
    assert sum(record.finish != "error" for record in records) <= 2
    assert open_run(first.path).meta.state == "finished"


def test_a_limit_that_the_load_just_meets_cuts_nothing(tmp_path: Path) -> None:
    free = run_tiny(tmp_path)
    bound = run_tiny(tmp_path, tiny_scenario(end=f"[limits]\nrequests = {free.verdict.requests}"))
    assert free.verdict.word == bound.verdict.word == "clean"
    assert bound.verdict.cut is None


def test_the_wall_clock_ends_the_load_and_takes_the_token(tmp_path: Path) -> None:
    clock, seen = Clock(), []

    def progress(snapshot: Progress) -> None:
        seen.append(snapshot)
        clock.now_s = 99.0  # before the limit nothing depends on it

    scenario = tiny_scenario(end="[limits]\nwall_s = 50")
    cut = run_tiny(tmp_path, scenario, clock_s=clock, progress=progress)
    assert cut.verdict.word == "inconclusive" and cut.verdict.word.exit_code == 5
    assert "the limit of 50 s (limits.wall_s) was reached" in cut.verdict.why[0]
    assert cut.verdict.token == "" and cut.verdict.cut.event > 0
    assert open_run(cut.path).meta.state == "interrupted"
    whole = run_tiny(tmp_path, scenario)
    shared = cut.verdict.cut.event
    before, after = (list(open_run(outcome.path).events())[:shared] for outcome in (cut, whole))
    assert before == after


def test_a_clock_that_runs_within_its_limit_changes_no_fingerprint(tmp_path: Path) -> None:
    ticking = Clock()

    def progress(snapshot: Progress) -> None:
        ticking.now_s += 1.0

    assert run_tiny(tmp_path).fingerprint == run_tiny(tmp_path, clock_s=ticking, progress=progress).fingerprint


def test_an_anomaly_stays_one_when_a_limit_cuts_the_run(tmp_path: Path) -> None:
    scenario = small_scenario()
    text = scenario.source + "\n[limits]\nrequests = 9\n"
    outcome = run_tiny(tmp_path, parse(text, "small", "small.toml"), options=RunOptions(seed=7))
    assert outcome.verdict.word == "anomaly"
    assert any("limits.requests" in why for why in outcome.verdict.why)
