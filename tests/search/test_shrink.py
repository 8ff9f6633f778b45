"""A finding gets smaller, stays the same finding, and is written down so that others can run it."""

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace
from typer.testing import CliRunner

from detectors.base import Finding, Layer
from detectors.evidence import PageChange
from repro.cli import app
from repro.run.options import RunOptions
from repro.run.run import run_scenario
from repro.scenario.overrides import overridden
from repro.scenario.schema import Scenario, find, parse
from repro.schedule.overrides import Overrides
from repro.schedule.schedule import Schedule
from repro.schedule.strategies import number_of
from repro.search import play as playing
from repro.search.explain import explain
from repro.search.play import Played, Trial, chief, play
from repro.search.shrink import shrink as shrinking
from repro.search.shrink.candidates import (
    _smaller,
    _subsets,
    aborts,
    fewer_deviations,
    fires,
    lengths,
    sessions,
    smaller_memory,
    tight_memory,
)
from repro.search.shrink.meetings import after_one_fault, meetings
from repro.search.shrink.shrinker import Shrinker
from repro.search.shrink.testfile import pytest_text
from tests.pool.here import HerePool
from tests.search.race import EARLY_READ, FOREIGN, RACE, played, race_scenario
from tests.tiny import UTC_RUN

SHOWING = Schedule("pct2", 8, 1, 300)  # a schedule in which wrong bytes are read


def shrinker(root: Path, signature: str, budget: int = 200) -> Shrinker:
    scenario, pool = race_scenario(), HerePool(1)
    return Shrinker(scenario, signature, pool, root=root, budget=budget, workers=1)


def test_deviations_are_dropped_until_only_those_that_matter_are_left(tmp_path: Path) -> None:
    noisy = Schedule(deviations=((6, 1), (10, 1), (13, 1), (16, 1)))
    case = played(tmp_path, noisy, overrides=Overrides(prompt_tokens=724, answer_tokens=2, requests=5))
    assert FOREIGN in case.signatures and case.deviations == noisy.deviations
    small = shrinker(tmp_path, FOREIGN, 60)
    result = small._descend(case, fewer_deviations)
    assert FOREIGN in result.signatures and 0 < len(result.deviations) < 4
    for dropped in range(len(result.deviations)):  # each one is needed
        rest = result.deviations[:dropped] + result.deviations[dropped + 1 :]
        options = replace(result.options, schedule=Schedule(deviations=rest))
        assert FOREIGN not in play(Trial(race_scenario(), options, str(tmp_path))).signatures


def test_a_random_schedule_gets_smaller_and_keeps_its_cause(tmp_path: Path) -> None:
    case = played(tmp_path, SHOWING)
    result = shrinker(tmp_path, FOREIGN, 90).shrink(case)
    assert FOREIGN in result.signatures
    assert 0 < len(result.deviations) < len(case.deviations) and result.requests < case.requests
    assert (result.options.overrides.prompt_tokens or 760) < 760


def test_what_the_natural_schedule_shows_needs_no_deviation(tmp_path: Path) -> None:
    result = shrinker(tmp_path, EARLY_READ, 30).shrink(played(tmp_path, SHOWING))
    assert result.options.schedule == Schedule() and result.deviations == () and result.requests <= 5


def test_the_budget_holds(tmp_path: Path) -> None:
    small = shrinker(tmp_path, FOREIGN, 7)
    assert FOREIGN in small.shrink(played(tmp_path, SHOWING)).signatures
    assert small.replays <= 7


def test_candidates_get_smaller_the_boldest_first() -> None:
    assert list(_smaller(100, 0)) == [0, 25, 50, 75, 90] and list(_smaller(1, 1)) == []
    assert list(_smaller(300, 400)) == []
    assert list(_subsets((1, 2, 3))) == [(), (2, 3), (1, 3), (1, 2)]


def test_a_short_prompt_is_never_made_longer() -> None:
    base = parse(RACE.replace("prompt_tokens = 760", "prompt_tokens = 300"), "race", "race.toml")
    case = Played(RunOptions())
    tried = [options.overrides.prompt_tokens for each in (smaller_memory, lengths) for options in each(case, base)]
    assert tried and all(tokens is None or tokens <= 300 for tokens in tried)


def test_contexts_are_whole_pages_and_fit_their_share_of_the_memory() -> None:
    base, case = race_scenario(), Played(RunOptions(), prompt_tokens=600)
    tried = [options.overrides for each in (tight_memory, smaller_memory) for options in each(case, base)]
    assert len(tried) > 4 and (tried[0].context_tokens, tried[0].device_pages) == (640, 13)  # 604 tokens, 80 %
    for overrides in tried:
        assert overrides.context_tokens % base.config.page_tokens == 0
        overridden(base, overrides)  # raises where a target refuses it


def all_meetings(case: Played, base: Scenario, prompt_tokens: int = 600) -> list[list[RunOptions]]:
    """Return all lists of meetings, each as if the one before had been played."""
    lists, played = [], dict[RunOptions, int]()
    for met in meetings(case, base, played):
        played.update(dict.fromkeys(met, prompt_tokens))
        lists.append(met)
    return lists


def test_two_of_all_sessions_may_meet_again() -> None:
    case = Played(RunOptions(), requests=5)
    tried = [options.overrides for options in all_meetings(case, race_scenario())[0]]
    assert [overrides.sessions for overrides in tried] == 2 * [(0, 1), (0, 2), (1, 2)]
    assert {(overrides.turns_in_all, overrides.turns) for overrides in tried} == {(3, 2)}
    assert {overrides.gap_ms for overrides in tried} == {None, 100}
    many = parse(RACE.replace("sessions = 3", "sessions = 9"), "race", "race.toml")
    assert len({options.overrides.sessions for options in all_meetings(case, many)[0]}) == 6
    assert all_meetings(msgspec.structs.replace(case, requests=3), race_scenario()) == []
    alone = parse(RACE.replace("sessions = 3", "sessions = 1"), "race", "race.toml")
    assert all_meetings(case, alone) == []


def test_two_meet_in_a_memory_for_their_own_prompts() -> None:
    case = Played(RunOptions(), requests=5)
    tried = [options.overrides for options in all_meetings(case, race_scenario())[1]]
    tight = {(overrides.context_tokens, overrides.device_pages) for overrides in tried}
    assert tight == {(640, 13), (640, 20), (768, 15), (768, 24)}


def test_meetings_of_other_seeds_are_the_same_each_time() -> None:
    case, base = Played(RunOptions(5), requests=5), race_scenario()
    drawn = all_meetings(case, base)[2:]
    assert drawn == all_meetings(case, base)[2:]
    loose, tight = drawn[::2], drawn[1::2]
    assert len({options.seed for each in loose for options in each}) > 30
    assert [len(each) for each in loose] == [len(each) for each in tight] == 6 * [16]
    assert {options.overrides.context_tokens for each in tight for options in each} == {640, 768}
    short = all_meetings(case, base, prompt_tokens=1)[2:]
    assert short[::2] == loose and not any(short[1::2])  # no memory is that small, and no draw hangs on another


def test_every_meeting_is_tried_in_tight_memory_whatever_the_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []
    for workers in (1, 3, 20):
        pool = HerePool(1)
        small = Shrinker(race_scenario(), FOREIGN, pool, root=tmp_path, budget=999, workers=workers)
        monkeypatch.setattr(small, "_play", lambda batch: [Played(each, prompt_tokens=600) for each in batch])
        case = Played(RunOptions(), requests=5)
        assert small._with_few_requests(case) is case
        tried.append(small._tried)
    assert tried[0] == tried[1] == tried[2] and len(tried[0]) > 200


def test_a_part_of_the_budget_is_kept_for_taking_away_one_thing_after_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = shrinker(tmp_path, FOREIGN, 50)
    monkeypatch.setattr(small, "_play", lambda batch: [Played(each, prompt_tokens=600) for each in batch])
    case = Played(RunOptions(), requests=5)
    assert small._with_few_requests(case) is case and small.replays == 40
    small._reduced(case)
    assert small.replays == 50


def test_a_fault_that_fires_once_needs_one_or_two_sessions() -> None:
    scenario = find("pd_reuse_before_drain")
    case = Played(RunOptions(overrides=Overrides(faults=())), requests=90)
    tried = [options.overrides for options in after_one_fault(case, scenario=scenario, base=scenario)]
    assert {overrides.sessions for overrides in tried} == {(0,), (1,), (0, 1)}
    assert {(overrides.faults, overrides.turns, overrides.fires_after) for overrides in tried} == {
        ((0,), 3, 0),
        ((0,), 3, 1),
    }
    assert {overrides.gap_ms for overrides in tried} <= set(range(16_000))
    assert list(after_one_fault(msgspec.structs.replace(case, requests=3), scenario=scenario, base=scenario)) == []
    without = msgspec.structs.replace(case, options=replace(case.options, no_faults=True))
    assert list(after_one_fault(without, scenario=scenario, base=scenario)) == list(fires(without, scenario)) == []
    once = overridden(scenario, tried[0])
    assert (once.faults[0].when.skip, once.faults[0].when.times, once.load.gap_s) == (0, 1, (0.01, 0.01))


def test_clients_that_leave_do_so_while_a_smaller_load_lasts() -> None:
    scenario = find("sched_double_free")  # they leave after nine seconds
    case = Played(RunOptions(), requests=90)
    assert [options.overrides.abort_ms for options in aborts(case, scenario)] == [300, 1_000, 2_000]
    assert list(aborts(case, overridden(scenario, Overrides(abort_ms=300)))) == []
    assert list(aborts(case, race_scenario())) == []  # whose clients stay
    assert list(aborts(case, find("hicache_writeback_raw"))) == []  # after 0.3 s
    without = msgspec.structs.replace(case, options=replace(case.options, no_faults=True))
    assert list(aborts(without, scenario)) == []
    drawn = [options for each in all_meetings(case, scenario)[2:] for options in each]
    for tried in (after_one_fault(case, scenario=scenario, base=scenario), drawn):
        assert {options.overrides.abort_ms for options in tried} == {None, 300, 1_000, 2_000}


def test_with_pd_decode_has_few_pages_too_and_then_prefill_alone() -> None:
    scenario = find("async_step_after_free")  # 160 pages for prefill, 128 for decode
    case = Played(RunOptions(), prompt_tokens=1_000)
    tried = [overridden(scenario, options.overrides).config for options in tight_memory(case, scenario)]
    assert [(config.device_pages, config.pd and config.pd.decode_pages) for config in tried] == [
        (23, 23), (36, 36), (23, 128), (36, 128),
    ]  # fmt: skip
    assert all(options.overrides.decode_pages is None for options in tight_memory(case, find("pd_reuse_before_drain")))


def test_the_finding_that_the_scenario_expects_is_kept(tmp_path: Path) -> None:
    layers: tuple[Layer, ...] = ("ordering", "canary")
    found = tuple(Finding(layer, layer, "", layer) for layer in layers)
    case, scenario = Played(RunOptions(), found=found), find("hicache_partial_prefetch")
    assert scenario.expect.detectors == ("canary",)
    assert shrinking._chosen(case, scenario, "").detector == "canary"
    assert shrinking._chosen(case, scenario, "ord").detector == "ordering"


def test_the_chief_finding_is_what_the_scenario_expects() -> None:
    layers: tuple[Layer, ...] = ("divergence", "canary", "ordering")
    found = [Finding(layer, layer, "", layer) for layer in layers]
    scenario = find("hicache_early_read")
    assert scenario.expect.detectors[:2] == ("ordering", "canary")
    assert chief(found, scenario).detector == "ordering" and chief(found[:2], scenario).detector == "canary"
    assert chief(found, find("generic_pd")) is found[0]  # which expects none


def test_what_takes_more_requests_is_not_smaller(tmp_path: Path) -> None:
    small, whole = shrinker(tmp_path, EARLY_READ, 7), RunOptions()
    assert small._first(iter([whole]), 5) is None
    small._tried.clear()
    assert small._first(iter([whole]), 6) is not None


def test_sessions_are_dropped_of_those_that_are_asked() -> None:
    base = parse(RACE.replace("sessions = 3", "sessions = 9\nonly_sessions = [2, 8]"), "race", "race.toml")
    tried = [options.overrides.sessions for options in sessions(Played(RunOptions()), base)]
    assert tried == [(8,), (2,)]
    whole = RunOptions(overrides=Overrides(sessions=(2, 8)))
    assert [
        options.overrides.sessions for options in sessions(Played(whole), overridden(base, whole.overrides))
    ] == tried


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("shrunk")
    outcome = run_scenario(race_scenario(), RunOptions(schedule=SHOWING), root=root, utc=UTC_RUN)
    return str(outcome.path)


def shrunk(run_dir: str, out: Path, *flags: str) -> tuple[int, dict[str, Any]]:
    arguments = ["shrink", run_dir, "--runs", str(out / "runs"), "--out", str(out), "--json", "-q", *flags]
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, msgspec.json.decode(result.stdout)


def test_the_files_fail_with_the_defect_and_pass_with_the_guard(
    run_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shrinking, "LocalPool", HerePool)
    monkeypatch.setattr(playing, "LocalPool", HerePool)
    code, told = shrunk(run_dir, tmp_path, "--signature", "canary: forward.index", "--budget", "20")
    assert code == 1 and told["signature"] == FOREIGN and told["replays"] <= 20 and told["control_silent"]
    scenario = find(told["scenario"])
    assert scenario.defects == ("hicache_early_read",) and told["token"] in scenario.source
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", told["pytest"]], capture_output=True, text=True
    )
    assert ran.returncode == 1 and "1 failed, 1 passed" in ran.stdout
    assert "FAILED" in ran.stdout and "[as_the_scenario_says]" in ran.stdout and "not its own prefix" in ran.stdout


def test_a_text_with_quotes_and_backslashes_is_a_test_file_too() -> None:
    nasty = '"" """ \\ \\x \\N """'
    scenario = msgspec.structs.replace(race_scenario(), title=nasty, source=RACE + f"# {nasty}\n")
    text = pytest_text(scenario, RunOptions(), FOREIGN, nasty)
    names = ast.parse(text)
    assert (ast.get_docstring(names) or "").startswith(f"{nasty}\n\n{nasty}\n")
    source = next(each.value for each in names.body if isinstance(each, ast.Assign) and "SCENARIO" in ast.dump(each))
    assert ast.literal_eval(source) == scenario.source


@pytest.mark.parametrize(
    ("flags", "wrong"),
    [
        (["--signature", "canary: forward.indx"], "this run has no such finding; nearest: "),
        (["--out", "/dev/null/x"], "cannot be written"),
    ],
)
def test_bad_input_is_said(
    flags: list[str], wrong: str, run_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shrinking, "LocalPool", HerePool)
    code, told = shrunk(run_dir, tmp_path, *flags, "--budget", "2")
    assert code == 2 and wrong in told["error"]


def test_a_run_without_a_finding_cannot_be_shrunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shrinking, "LocalPool", HerePool)
    options = RunOptions(control=True)
    outcome = run_scenario(race_scenario(), options, root=tmp_path / "made", utc=UTC_RUN)
    code, told = shrunk(str(outcome.path), tmp_path)
    assert code == 2 and "this run comes to clean, without a finding" in told["error"]


def test_the_explanation_names_operations_layer_and_request(tmp_path: Path) -> None:
    case = played(tmp_path)
    told = explain(case.found[0], case)
    assert told.startswith("The indexer of layer ") or told.startswith("Load-back of layer ")
    assert " for request code-review-0-" in told and "nothing orders them." in told
    assert "It takes no special schedule" in told and "Missing edge: compute waits for no event" in told


def test_of_a_page_with_two_owners_the_last_changes_are_told() -> None:
    evidence = PageChange(5, 1, "device", tuple(f"{number}.0 us: alloc (r{number})" for number in range(9)))
    found = Finding("ownership", "ordering", "device page 5 is freed twice", "ownership: x", evidence=evidence)
    told = explain(found, Played(RunOptions(), found=(found,)))
    assert told.startswith("device page 5 is freed twice.\nThe page's last changes: 5.0 us: alloc (r5); 6.0 us")


def test_what_a_schedule_holds_back_is_told(tmp_path: Path) -> None:
    case = played(tmp_path, Schedule("hold", number_of("loadback.copy_layer"), 2))
    found = next(each for each in case.found if each.signature == FOREIGN)
    assert "Its schedule holds load-back back at " in explain(found, case) and "by 100 ms at most." in explain(
        found, case
    )


def test_an_overtaking_is_told_by_name(tmp_path: Path) -> None:
    schedule = Schedule(deviations=((8, 1),))
    case: Played = played(tmp_path, schedule)
    assert case.deviations == ((8, 1),)
    assert "At step 8, the " in explain(case.found[0], case) and " comes before the " in explain(case.found[0], case)


def test_what_is_kept_of_the_load_is_in_the_token(tmp_path: Path) -> None:
    overrides = Overrides(sessions=(0, 2), requests=3)
    case = play(Trial(race_scenario(), RunOptions(overrides=overrides), str(tmp_path)))
    assert case.requests == 3 and 0 < len(case.token) <= 64
    assert RACE in (Path(case.run_dir) / "scenario.toml").read_text()
