"""A small experiment from its file to its exit code: the steps, what is kept, what a resume runs again."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from repro.base.errors import UsageError
from repro.cli import app
from repro.fleet import runs
from repro.fleet.experiment.folder import ExperimentFolder
from repro.fleet.experiment.plan import Experiment, parse_experiment
from repro.fleet.experiment.result import ExperimentOptions, run_experiment
from repro.fleet.experiment.runs import NOTHING_BAD
from repro.fleet.runs import PlannedRun, verdict_of
from repro.record.verdict import RunVerdict
from repro.record.view import open_run
from repro.trace.store import read_sessions
from tests.fleet.experiment.builders import experiment_text
from tests.fleet.pretended import DEAD
from tests.pool.here import HerePool


def small() -> Experiment:
    return parse_experiment(experiment_text(), "small", "small.toml")


def run(root: Path, *, resume: Path | None = None, seeds: int = 1) -> tuple[int, dict[str, Any], str]:
    """Run it and return exit code, the result's file, and what was told on the way."""
    told: list[str] = []
    options = ExperimentOptions(given="small.toml", root=root, seeds=seeds, workers=1, resume=resume)
    code = run_experiment(small(), options, told.append).exit_code
    (path,) = root.glob("small/*/result.json")
    return code, msgspec.json.decode(path.read_bytes()), "\n".join(told)


@pytest.fixture(scope="module")
def here() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "LocalPool", HerePool)
        yield


@pytest.fixture(scope="module")
def whole(here: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, dict[str, Any]]:
    root = tmp_path_factory.mktemp("whole")
    code, result, _ = run(root)
    return root, code, result


def steps_of(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {part["key"]: part for step in result["steps"] for part in step["parts"]}


def test_every_step_comes_to_what_the_file_expects(whole: tuple[Path, int, dict[str, Any]]) -> None:
    _, code, result = whole
    assert (code, result["verdict"], result["why"]) == (0, "as expected", [])
    parts = steps_of(result)
    assert list(parts) == ["a", "d", "e", "c-lifo", "c-deferred-sorted", "c-timeout"]
    assert parts["d"]["verdicts"] == {"anomaly": 1} and parts["d"]["corrupted"] > 0
    assert parts["e"]["verdicts"] == parts["a"]["verdicts"] == {"clean": 1}
    assert parts["a"]["requests"] == parts["a"]["finished"] == parts["d"]["corrupted"]
    assert parts["e"]["requests"] == parts["d"]["requests"] and parts["e"]["raced"] == 0
    rate = parts["d"]["rate"]
    assert (rate["count"], rate["of"]) == (parts["d"]["corrupted"], parts["d"]["finished"])
    assert 0 < rate["low"] < rate["high"] < 1 and rate["session_low"] < rate["session_high"]
    assert [parts[key]["sensitivity"] for key in ("c-lifo", "c-timeout")] == [False, True]
    assert parts["c-timeout"]["differs"] == {"pd.transfer_timeout_s": 0.25}
    assert result["simulated"] is True


def test_the_bad_requests_are_asked_with_the_same_prompts(whole: tuple[Path, int, dict[str, Any]]) -> None:
    root, _, _ = whole
    (trace,) = root.glob("small/*/traces/a-0.jsonl")
    asked = {session.id: len(session.turns) for session in read_sessions(trace)}
    (bad_run,) = root.glob("small/*/runs/d/*")
    (alone_run,) = root.glob("small/*/runs/a-0/*")
    bad = {f"{r.session}.{r.turn}": r.prompt_tokens for r in open_run(bad_run).requests if r.corrupted or r.poisoned}
    alone = {record.session: record.prompt_tokens for record in open_run(alone_run).requests}
    assert alone == bad and asked == dict.fromkeys(bad, 1)


def test_a_resume_runs_only_what_is_missing(
    whole: tuple[Path, int, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "copy"
    shutil.copytree(whole[0], root)
    (path,) = root.glob("small/*/")
    ran: list[str] = []

    def counted(planned: PlannedRun) -> RunVerdict | str:
        ran.append(planned.scenario)
        return verdict_of(planned)

    monkeypatch.setattr(runs, "verdict_of", counted)
    (path / "results/e-0.json").unlink()
    code, result, told = run(root, resume=path)
    assert (code, ran) == (0, ["e"]) and told.count("(of an earlier start)") == 5
    assert steps_of(result)["e"]["verdicts"] == {"clean": 1}


def test_a_resume_refuses_another_plan(whole: tuple[Path, int, dict[str, Any]], tmp_path: Path) -> None:
    (path,) = whole[0].glob("small/*/")
    with pytest.raises(UsageError, match="its seeds max differs"):
        ExperimentFolder.resume(path, small(), first=0, seeds=2)
    with pytest.raises(UsageError, match="its source differs"):
        other = parse_experiment(experiment_text() + "\n", "small", "small.toml")
        ExperimentFolder.resume(path, other, first=0, seeds=1)
    with pytest.raises(UsageError, match="no experiment"):
        ExperimentFolder.resume(tmp_path, small(), first=0, seeds=1)


def test_ctrl_c_keeps_what_was_done_and_names_the_command_that_continues(
    here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressing(planned: PlannedRun) -> RunVerdict | str:
        if planned.scenario == "e":
            raise KeyboardInterrupt
        return verdict_of(planned)

    monkeypatch.setattr(runs, "verdict_of", pressing)
    code, result, told = run(tmp_path)
    (path,) = tmp_path.glob("small/*/")
    assert code == 5 and result["missing"] == 4  # e, and the three parts of c
    assert f"repro run small.toml --seed 0 --seeds 1 --resume {path}" in told
    assert steps_of(result)["d"]["runs"] == 1 and (path / "results/d-0.json").exists()


def test_a_run_that_dies_is_four_and_one_that_is_cut_short_is_run_again(
    here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "verdict_of", lambda planned: DEAD)
    code, result, _ = run(tmp_path)
    assert code == 4 and result["why"][0] == "step d: exit 4: the disk is full"
    assert not list(tmp_path.glob("small/*/results/*"))


def test_a_run_is_given_the_scenario_and_the_settings_of_its_part(
    here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned: list[PlannedRun] = []
    monkeypatch.setattr(runs, "verdict_of", lambda each: planned.append(each) or "exit 1: nothing")
    run(tmp_path)
    by_name = {each.scenario: each for each in planned}
    assert set(by_name) == {"d", "e", "c-lifo", "c-deferred-sorted", "c-timeout"}
    assert by_name["e"].control and not by_name["e"].no_faults
    assert by_name["c-lifo"].no_faults and not by_name["c-lifo"].control
    assert not by_name["d"].control and not by_name["d"].no_faults
    assert NOTHING_BAD.format("d").startswith("no request of d")


def test_the_command_line_takes_a_file_and_refuses_what_is_not_for_it(
    here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "small.toml"
    path.write_text(experiment_text())
    monkeypatch.setattr(runs, "verdict_of", lambda planned: "exit 1: nothing")
    out = CliRunner().invoke(app, ["run", str(path), "--json", "--quiet", "--seeds", "1", "--runs", str(tmp_path)])
    assert out.exit_code == 4 and msgspec.json.decode(out.stdout)["verdict"] == "failed" and out.stderr == ""
    refused = CliRunner().invoke(app, ["run", str(path), "--control"])
    assert refused.exit_code == 2 and "is an experiment, whose steps say what they run" in refused.stderr
    refused = CliRunner().invoke(app, ["run", "hicache_early_read", "--seeds", "3"])
    assert refused.exit_code == 2 and "is no experiment" in refused.stderr
    refused = CliRunner().invoke(app, ["campaign", "pd_scaling_pain"])
    assert refused.exit_code == 2 and "is an experiment; `repro run pd_scaling_pain` runs it" in refused.stderr
    listed = CliRunner().invoke(app, ["list"])
    assert "pd_scaling_pain" in listed.stdout
