"""A hunt finds the race that a natural schedule does not show, proves it, and is silent with the guard in place."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace
from typer.testing import CliRunner

from repro.cli import app
from repro.fault.plan import When
from repro.pool.call import Died
from repro.pool.local import LocalPool
from repro.run.options import RunOptions
from repro.scenario.overrides import light_load, overridden
from repro.scenario.schema import parse
from repro.scenario.sessions import sessions_of
from repro.schedule.overrides import Overrides
from repro.schedule.token import decode
from repro.search import hunt as hunting
from repro.search import play as playing
from repro.search.hunt import Hunt, HuntPlan, HuntTally
from repro.search.play import Played, Trial
from repro.search.searcher import Searcher
from repro.trace.store import write_sessions
from tests.pool.here import HerePool
from tests.search.race import EARLY_READ, FOREIGN, RACE, played, race_scenario


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hunting, "LocalPool", HerePool)
    monkeypatch.setattr(playing, "LocalPool", HerePool)


def hunted(root: Path, clock_s: Callable[[], float] = lambda: 0.0, **changes: Any) -> HuntTally:
    control = changes.pop("control", False)
    plan = HuntPlan(**({"budget": 20} | changes))
    searcher = Searcher(plan.search, 0)
    options = RunOptions(control=control)
    return Hunt(race_scenario(), options, plan, searcher, root=root, workers=1, clock_s=clock_s).run()


def test_the_missing_wait_is_found_in_the_first_schedule_and_proved(tmp_path: Path) -> None:
    tally = hunted(tmp_path)
    (caught,) = tally.caught
    assert (caught.signature, caught.layer, caught.proved, tally.runs) == (EARLY_READ, "ordering", True, 1)
    assert [path.parent.name for path in tmp_path.glob("*/*/run.json")] == [Path(caught.run_dir).name]


@pytest.mark.parametrize("search", ["pct3", "portfolio"])
def test_wrong_bytes_that_the_natural_schedule_does_not_show_are_found(search: str, tmp_path: Path) -> None:
    assert FOREIGN not in played(tmp_path).signatures
    tally = hunted(tmp_path, search=search, layers=("canary",))
    assert tally.runs > 1 and FOREIGN in {caught.signature for caught in tally.caught}
    assert all(caught.proved and not decode(caught.token).elsewhere for caught in tally.caught)


def test_with_the_guard_in_place_no_schedule_finds_anything(tmp_path: Path) -> None:
    tally = hunted(tmp_path, control=True, budget=12)
    assert (tally.runs, tally.caught, tally.died, tally.vacuous) == (12, [], 0, 0)
    assert list(tmp_path.glob("*/*/run.json")) == []


def test_all_causes_are_collected_once_each(tmp_path: Path) -> None:
    tally = hunted(tmp_path, everything=True, search="pct3", budget=8)
    signatures = [caught.signature for caught in tally.caught]
    assert tally.runs == 8 and len(signatures) == len(set(signatures)) and {EARLY_READ, FOREIGN} <= set(signatures)


def test_the_time_is_a_budget_too(tmp_path: Path) -> None:
    seconds = iter(range(1000))
    tally = hunted(tmp_path, lambda: float(next(seconds)), control=True, time_s=20.0)
    assert 1 <= tally.runs < 20


@pytest.mark.parametrize(
    ("word", "met", "chosen"),
    [("clean", (), 8), ("vacuous", (), 40), ("clean", ("forward.store",), 40)],
    ids=["short answers show as much", "short answers are vacuous", "an operation meets others in long answers only"],
)
def test_answers_are_short_unless_long_ones_show_more(
    word: str, met: tuple[str, ...], chosen: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = []

    def plays(trial: Trial) -> Played:
        tokens = trial.options.overrides.answer_tokens or 40
        answers.append(tokens)
        return Played(trial.options, "clean" if tokens > 8 else word, operations=met if tokens > 8 else ())

    monkeypatch.setattr(hunting, "play", plays)
    plan, loads = HuntPlan("random", budget=4), (Overrides(answer_tokens=8), Overrides())
    searcher = Searcher("random", 0)
    Hunt(
        race_scenario(), RunOptions(), plan, searcher, root=tmp_path, workers=1, clock_s=lambda: 0.0, loads=loads
    ).run()
    assert answers == [8, 40, chosen, chosen]


def test_a_finding_that_does_not_come_again_is_not_proved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lies(trial: Trial) -> Any:
        told = original(trial)
        numbers.append(len(numbers))
        return msgspec.structs.replace(told, fingerprint=f"{numbers[-1]}{told.fingerprint}")

    numbers: list[int] = []
    original = hunting.play
    monkeypatch.setattr(hunting, "play", lies)
    monkeypatch.setattr(playing, "play", lies)
    assert [caught.proved for caught in hunted(tmp_path).caught] == [False]


def test_a_schedule_that_breaks_the_stack_is_counted_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(trial: Trial) -> Any:
        return msgspec.structs.replace(original(trial), error="HarnessError: it died", found=())

    original = hunting.play
    monkeypatch.setattr(hunting, "play", dies)
    tally = hunted(tmp_path, budget=2)
    assert (tally.died, tally.errors) == (2, ["HarnessError: it died"] * 2)


@pytest.mark.parametrize("word", ["failed", "inconclusive"])
def test_a_schedule_that_nobody_could_judge_is_never_clean(
    word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unjudged(trial: Trial) -> Played:
        if trial.options.schedule.natural:
            return original(trial)
        return Played(trial.options, word, error="HarnessError: it died" if word == "failed" else "")

    original = hunting.play
    monkeypatch.setattr(hunting, "play", unjudged)
    code, told = cli(tmp_path, "--full", "--control", "--budget", "2")
    assert (code, told["verdict"], told["runs"], told["unknown"]) == (5, "inconclusive", 2, 1)


def test_a_hunt_is_vacuous_only_when_all_its_schedules_were() -> None:
    assert HuntTally(runs=2, vacuous=2).verdict == "vacuous"
    assert HuntTally(runs=2, vacuous=1).verdict == "clean"
    assert HuntTally(runs=2, vacuous=1, unknown=1).verdict == "inconclusive"
    assert HuntTally().verdict == "inconclusive"


def test_a_killed_worker_ends_the_hunt_with_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def is_killed(trial: Trial) -> Played | Died:
        if trial.options.schedule.natural:
            return original(trial)
        return Died("killed by SIGKILL: no last words")

    original = hunting.play
    monkeypatch.setattr(hunting, "play", is_killed)
    code, told = cli(tmp_path, "--full", "--control", "--budget", "9", "--workers", "1")
    assert (code, told["verdict"], told["runs"], told["died"], told["unknown"]) == (5, "inconclusive", 2, 1, 1)
    assert "was killed" in told["errors"][0] and msgspec.json.decode(Path(told["corpus"]).read_bytes())["entries"]


def test_a_process_that_is_really_killed_is_no_crash_of_the_hunt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hunting, "LocalPool", LocalPool)
    monkeypatch.setattr(hunting, "play", killed)
    tally = hunted(tmp_path)
    assert (tally.runs, tally.died, tally.caught, tally.verdict) == (1, 1, [], "failed")


def killed(trial: Trial) -> Played:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


@pytest.mark.parametrize("end", [KeyboardInterrupt(), Died("killed by SIGKILL: no last words")])
def test_a_finding_whose_proof_was_stopped_stays_as_not_proved(
    end: BaseException | Died, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(scenario: Any, played: Played, root: Path) -> Died:
        if isinstance(end, Died):
            return end
        raise end

    monkeypatch.setattr(hunting, "comes_again", stopped)
    tally = hunted(tmp_path, everything=True)
    (caught,) = tally.caught
    assert (caught.signature, caught.proved, tally.verdict) == (EARLY_READ, None, "inconclusive")
    assert tally.interrupted == isinstance(end, KeyboardInterrupt) and Path(caught.run_dir).is_dir()


def test_processes_of_their_own_play_and_prove(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hunting, "LocalPool", LocalPool)
    monkeypatch.setattr(playing, "LocalPool", LocalPool)
    (caught,) = hunted(tmp_path).caught
    assert caught.signature == EARLY_READ and caught.proved


def cli(tmp_path: Path, *flags: str) -> tuple[int, dict[str, Any]]:
    file = tmp_path / "race.toml"
    file.write_text(RACE)
    result = CliRunner().invoke(app, ["hunt", str(file), "--runs", str(tmp_path / "runs"), "--json", "-q", *flags])
    return result.exit_code, msgspec.json.decode(result.stdout)


def test_the_command_prints_runs_findings_and_the_first_token(tmp_path: Path) -> None:
    code, told = cli(tmp_path, "--full")
    assert code == 1 and told["runs"] == 1 and told["token"] == told["findings"][0]["token"]
    assert told["findings"][0]["signature"] == EARLY_READ
    code, told = cli(tmp_path, "--full", "--control", "--budget", "2", "--corpus", str(Path(told["corpus"]).parent))
    assert (code, told["verdict"], told["findings"], told["token"]) == (0, "clean", [], "")


def test_a_hunt_with_a_corpus_plays_no_schedule_of_its_predecessor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def listens(trial: Trial) -> Played:
        heard.append(trial.options.schedule.seed)
        return Played(trial.options, "clean", orders=frozenset({str(trial.options.schedule.seed)}))

    heard: list[int] = []
    monkeypatch.setattr(hunting, "play", listens)
    flags = ("--full", "--strategy", "pos", "--budget", "3")
    _, told = cli(tmp_path, *flags)
    cli(tmp_path, *flags, "--corpus", told["corpus"])
    assert sorted(heard) == [0, 0, 1, 2, 3, 4]  # 0: the natural one, that tells how much there is


@pytest.mark.parametrize(
    ("flags", "wrong"),
    [
        (["--layer", "canari"], '--layer "canari": give one of ordering, canary'),
        (["--corpus", "nowhere"], "nowhere: no corpus of a hunt"),
    ],
)
def test_bad_input_is_said(flags: list[str], wrong: str, tmp_path: Path) -> None:
    code, told = cli(tmp_path, *flags)
    assert code == 2 and wrong in told["error"]


def test_a_budget_of_nothing_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["hunt", "hicache_early_read", "--budget", "0"])
    assert result.exit_code == 2 and "--budget" in result.output


def test_a_light_load_keeps_its_race() -> None:
    scenario = race_scenario()
    overrides = light_load(scenario, stamps=True)
    assert overrides.sessions == (0, 1, 2) and overrides.device_pages == 28
    lighter = overridden(scenario, replace(overrides, sessions=(0, 2), turns=1))
    assert (lighter.load.only_sessions, lighter.load.turns, lighter.config.device_pages) == ((0, 2), 1, 28)


def test_what_is_kept_of_gaps_faults_and_memory_is_in_the_file() -> None:
    fault = (
        '[[fault]]\nat = "loadback.copy_layer"\nwhen = {{ probability = 0.5 }}\ndo = {{ kind = "delay", us = {us} }}\n'
    )
    scenario = parse(RACE + fault.format(us=5) + fault.format(us=7), "race", "race.toml")
    lighter = overridden(
        scenario, Overrides(faults=(1,), fires_after=4, gap_ms=250, host_pages=99, turns_in_all=5, requests=7)
    )
    assert [(each.do.time_us, each.when) for each in lighter.faults] == [(7, When(skip=4, times=1))]
    assert (lighter.load.gap_s, lighter.config.host_pages, lighter.load.requests) == ((0.25, 0.25), 99, 5)
    assert lighter.limits.requests == 7


def test_a_light_load_is_of_the_sessions_that_the_file_asks() -> None:
    scenario = parse(RACE.replace("sessions = 3", "sessions = 9\nonly_sessions = [8, 2]"), "race", "race.toml")
    overrides = light_load(scenario, stamps=True)
    assert overrides.sessions == (2, 8) and overrides.device_pages == 28


def test_a_light_load_is_of_the_sessions_that_the_trace_has(tmp_path: Path) -> None:
    write_sessions(tmp_path / "two.jsonl", sessions_of(race_scenario().load, 0)[:2])
    of_trace = f'trace = "{tmp_path / "two.jsonl"}"\nsessions = 9'
    scenario = parse(
        RACE.replace("sessions = 3", of_trace).replace("prompt_tokens = 760\n", "").replace("gap_s", "# "), "race", "x"
    )
    overrides = light_load(scenario, stamps=True)
    assert overrides.sessions == (0, 1) and overrides.device_pages == 28
    assert len(sessions_of(overridden(scenario, overrides).load, 0)) == 2
