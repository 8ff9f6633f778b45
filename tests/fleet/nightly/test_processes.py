"""Nights whose runs are real: processes that are killed, a night that is killed, and the command line."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from typer.testing import CliRunner

from repro.cli import app
from repro.cli.suites import duration_s
from repro.fleet.nightly.execute import execute, runs_on
from repro.fleet.nightly.job import Job, JobResult
from repro.fleet.nightly.night import NightOptions
from repro.fleet.nightly.plan import Plan, Target
from repro.pool.local import LocalPool
from repro.record.log import log_of
from tests.fleet.nightly.builders import PretendedRuns, make_suite, suite_file
from tests.fleet.nightly.test_night import anomalous, night_of

LOOK_S = 0.05  # between two looks at the journal
READY_LINES = 2  # of a journal: the night's own, and a first result


def jobs_of(folder: Path, seeds: int = 2) -> Iterator[Job]:
    return Plan(make_suite(folder, seeds=seeds), Target(), 0).jobs()


def command(suite: Path, out: Path, *more: str) -> list[str]:
    return ["nightly", "--suite", str(suite), "--out", str(out), "--json", "--quiet", "--workers", "1", *more]


def started(suite: Path, out: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-m", "repro", *command(suite, out)], stdout=subprocess.PIPE)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A night that nothing disturbs, and its suite."""
    folder = tmp_path_factory.mktemp("whole")
    suite = suite_file(folder, seeds=2)
    result = CliRunner().invoke(app, command(suite, folder / "night"))
    assert result.exit_code == 0, result.stderr
    return suite, json.loads(result.stdout)


def test_the_control_is_silent_the_defect_found_and_only_evidence_stays(whole: tuple[Path, dict[str, Any]]) -> None:
    _, night = whole
    assert night["verdict"] == "clean" and night["runs"] == 4 and night["pruned"]["runs"] == 2
    silent, found = night["cases"]
    assert silent["verdicts"] == {"clean": 2} and found["verdicts"] == {"anomaly": 2}
    kept = sorted(Path(night["folder"], "runs").glob("*/*"))
    assert len(kept) == 2 and all((folder / "findings.jsonl").exists() for folder in kept)


def test_a_defect_is_exit_code_one_with_a_report_of_each_cause(tmp_path: Path) -> None:
    suite = suite_file(tmp_path, seeds=1)
    result = CliRunner().invoke(app, command(suite, tmp_path / "night", "--defect", "pd_reuse_before_drain"))
    night = json.loads(result.stdout)
    assert result.exit_code == night["exit_code"] == 1 and night["findings"]
    for finding in night["findings"]:
        assert finding["new"] and Path(finding["report"]).exists() and log_of(Path(finding["example"])).exists()


def test_kill_nine_and_resume_come_to_the_same_night(whole: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    suite, undisturbed = whole
    out = tmp_path / "night"
    process = started(suite, out)
    journal = out / "journal.jsonl"
    try:
        while not journal.exists() or journal.read_bytes().count(b"\n") < READY_LINES:
            with pytest.raises(subprocess.TimeoutExpired):  # it is still at work
                process.wait(LOOK_S)
    finally:
        process.kill()
        process.communicate()
    assert not (out / "nightly.json").exists()
    lines = journal.read_bytes().count(b"\n")
    result = CliRunner().invoke(app, command(suite, out, "--resume"))
    night = json.loads(result.stdout)
    assert (night["digest"], night["verdict"]) == (undisturbed["digest"], undisturbed["verdict"])
    keys = [json.loads(line).get("key") for line in journal.read_bytes().splitlines()]
    assert len(keys) == len(set(keys)) == 5 and lines < 5


def test_a_worker_that_is_killed_costs_its_run_and_the_next_one_gets_a_new_process(tmp_path: Path) -> None:
    with LocalPool(1) as pool:
        results = runs_on(pool, tmp_path / "runs", jobs_of(tmp_path))
        assert next(results).verdict == "clean"
        process = pool._workers[0]._process
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)
        died = next(results)
        assert died.verdict == "died" and "SIGKILL" in died.why[0]
        assert [result.verdict for result in results] == ["clean", "anomaly"]
        second = pool._workers[0]._process
    assert second is not None and second.poll() == -signal.SIGKILL  # leaving the pool ends it


def test_a_run_that_cannot_begin_has_died_with_its_reason(tmp_path: Path) -> None:
    job = Job("small", "format = 2", 0, control=True, root=str(tmp_path), case="a", role="silent")
    assert execute(job).verdict == "died"
    gone = replace(job, toml=next(jobs_of(tmp_path)).toml, control=False, url="http://127.0.0.1:1")
    result = execute(gone)
    assert result.target_lost and result.verdict in ("died", "failed") and result.why


def test_what_is_wrong_on_the_command_line_is_a_usage_error(tmp_path: Path) -> None:
    suite = suite_file(tmp_path)
    for more, told in (
        (("--defect", "pd_reuse_befor_drain"), 'nearest: "pd_reuse_before_drain"'),
        (("--defect", "pd_reuse_before_drain", "--target", "http://127.0.0.1:1"), "needs the bundled stack"),
        (("--target", "ftp://x"), "give bundled, or a URL"),
        (("--reference", "bundled"), "beside one with --defect"),
        (("--time", "soon"), "such as 2h, 30m or 90s"),
        (("--baseline", str(tmp_path / "none")), "cannot be read"),
    ):
        result = CliRunner().invoke(app, command(suite, tmp_path / f"night{told[:4]}", *more))
        assert result.exit_code == 2 and told in result.stderr.replace("\n", " "), result.stderr
        assert not (tmp_path / f"night{told[:4]}").exists()  # the same command, put right, may begin there
    result = CliRunner().invoke(app, ["nightly", "--suite", str(suite), "--resume"])
    assert result.exit_code == 2 and "say which: --out FOLDER" in result.stderr


def test_times_are_read_with_their_units() -> None:
    assert [duration_s(text) for text in ("2h", "30m", "90s", "90", "1.5h")] == [7200, 1800, 90, 90, 5400]
    assert NightOptions(suite="smoke", root=Path("runs")).workers == 2


def test_compare_says_worse_same_or_that_it_cannot_tell(tmp_path: Path) -> None:
    def night(name: str, pool: PretendedRuns, seeds: int) -> str:
        plan = Plan(make_suite(tmp_path, seeds=seeds), Target(), 0)
        night_of(tmp_path / name, pool, plan=plan)
        return str(tmp_path / name)

    clean, bad = night("clean", PretendedRuns(), 40), night("bad", PretendedRuns(anomalous), 40)
    few = night("few", PretendedRuns(), 3)
    worse = CliRunner().invoke(app, ["compare", clean, bad, "--json"])
    told = json.loads(worse.stdout)
    assert worse.exit_code == 1 and told["answer"] == "worse" and told["new_signatures"] == ["canary: new"]
    assert told["effect_low"] > 0 and told["p_value"] < 1e-6 and 0 <= told["power"] <= 1
    assert CliRunner().invoke(app, ["compare", bad, clean, "--json"]).exit_code == 0
    unsure = CliRunner().invoke(app, ["compare", few, clean])
    assert unsure.exit_code == 5 and "INCONCLUSIVE" in unsure.stdout and "probability" in unsure.stdout
    same = CliRunner().invoke(app, ["compare", few, clean, "--same-within", "0.9", "--json"])
    assert same.exit_code == 0 and json.loads(same.stdout)["answer"] == "same"
    assert CliRunner().invoke(app, ["compare", clean, str(tmp_path)]).exit_code == 2


def test_two_runs_are_compared_as_well(whole: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    jobs = {job.role: job for job in jobs_of(tmp_path, 1)}
    before, after = (_folder(execute(replace(jobs[role], root=str(tmp_path / "runs")))) for role in ("silent", "found"))
    told = CliRunner().invoke(app, ["compare", before, after, "--json"])
    assert told.exit_code == 1 and json.loads(told.stdout)["answer"] == "worse"


def _folder(result: JobResult) -> str:
    assert result.run_dir
    return result.run_dir
