"""The command line as a hostile user finds it: a sentence, the right exit code, one JSON object, no traceback."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner, Result

from repro.cli import app
from repro.record.view import open_run
from tests.builders import make_folder, make_request, make_run, race_events, unpacked_log
from tests.tiny import SERVER_LOST, TINY, tiny_text

SESSION = '{"id": "a", "turns": [{"messages": [{"role": "user", "content": "Fix a.py"}], "max_tokens": 2}]}\n'
RACE = "[[fault]]\nat = 'loadback.copy_layer'\ndo = { kind = 'delay', us = 5000 }"
PRESSED_WHILE_IMPORTING = """
import signal, sys

module = sys.argv[1]

class Presses:
    def find_spec(self, name, path, target=None):
        if name == module:
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Presses())
sys.argv[1:] = ["run", "tiny.toml"]
from repro.__main__ import main
main()
"""
COMMANDS = (
    "run", "replay", "calibrate", "reproduce", "campaign", "detect", "profile", "report", "serve", "list", "faults"
)  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    Path("tiny.toml").write_text(TINY)
    return tmp_path


def repro(*args: str) -> Result:
    """Run a command in this process; runs go to ./runs."""
    result = CliRunner().invoke(app, list(args))
    assert "Traceback" not in result.stderr and "Traceback" not in result.stdout
    return result


def only_object(result: Result) -> dict[str, Any]:
    """Return the one JSON object on standard output, and nothing else stands there."""
    assert result.stdout.count("\n") == 1
    told: dict[str, Any] = msgspec.json.decode(result.stdout)
    return told


def start(*args: str, **more: Any) -> "subprocess.Popen[bytes]":
    """Start a command as a program of its own."""
    command = [sys.executable, "-m", "repro", *args, "--threads", "1"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)


def ended(process: "subprocess.Popen[bytes]") -> tuple[int, str, str]:
    out, told = process.communicate(timeout=120)
    assert b"Traceback" not in told
    return process.returncode, out.decode(), told.decode()


# -- what is printed, and where


def test_a_run_prints_its_verdict_as_one_object_and_progress_beside_it() -> None:
    result = repro("run", "tiny.toml", "--seed", "3", "--json", "--threads", "1")
    told = only_object(result)
    assert (result.exit_code, told["verdict"], told["seed"]) == (0, "clean", 3)
    assert {
        "requests",
        "findings",
        "funnel",
        "faults",
        "exercised",
        "fingerprint",
        "token",
        "run_dir",
        "report",
    } <= set(told)
    assert Path(told["report"]).is_file() and len(told["token"]) <= 64
    assert "requests" in result.stderr


def test_quiet_says_nothing_on_standard_error() -> None:
    result = repro("run", "tiny.toml", "--quiet", "--threads", "1")
    assert result.exit_code == 0 and result.stderr == "" and result.stdout.startswith("CLEAN")


@pytest.mark.parametrize("picker", ["timed", "random"])
def test_a_token_reproduces_the_run_of_a_file_of_ones_own(picker: str) -> None:
    told = only_object(repro("run", "tiny.toml", "--picker", picker, "--json", "-q", "--threads", "1"))
    again = repro("reproduce", told["token"], "--json", "-q", "--threads", "1")
    assert again.exit_code == 0 and only_object(again)["fingerprint"] == told["fingerprint"]
    assert again.stderr.startswith("the same run: fingerprint ")


def test_vacuous_is_three_and_says_why() -> None:
    Path("vacuous.toml").write_text(tiny_text(end=RACE + "\n[exercise]\nload_backs = 3"))
    result = repro("run", "vacuous.toml", "--json", "-q", "--threads", "1")
    assert result.exit_code == 3
    assert only_object(result)["why"] == [
        "loadback.copy_layer.delay never fired (0 hits of its point)",
        "load_backs = 0, below the floor of 3",
    ]


def test_list_names_everything_that_other_commands_take() -> None:
    result = repro("list")
    assert result.exit_code == 0
    for name in ("hicache_early_read", "github.com/sgl-project/sglang/pull/22811", "tiny-hicache"):
        assert name in result.stdout


def test_faults_lists_every_fault_and_tells_corrupting_ones() -> None:
    result = repro("faults")
    assert "spec: passes of the draft layer ([target] speculative_drafts)" in result.stdout
    assert result.exit_code == 0 and "loadback.copy_layer.delay" in result.stdout
    listed = msgspec.json.decode(repro("faults", "--json").stdout)["faults"]
    assert len(listed) > 100
    assert [each["name"] for each in listed if not each["legal"]][:2] == ["memory.in_use.flip", "memory.in_use.zero"]


def test_help_of_faults_names_the_table_and_takes_its_brackets_for_no_markup() -> None:
    assert "a scenario's [[fault]] may ask for" in " ".join(repro("faults", "--help").stdout.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_examples(command: str) -> None:
    result = repro(command, "--help")
    assert result.exit_code == 0
    assert f"repro {command}" in result.stdout.partition("Examples")[2] or command == "list"


def test_the_programs_help_tells_the_exit_codes() -> None:
    told = " ".join(repro("--help").stdout.split())
    assert "0 clean, 1 anomaly, 2 usage error, 3 vacuous, 4 failed, 5 inconclusive" in told


# -- what is wrong with the command or a file: 2


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (
            ["run", "hicache_early"],
            '"hicache_early" is no scenario; nearest: "hicache_early_read". `repro list` shows them',
        ),
        (["run", "tiny"], "the file beside you is `repro run ./tiny.toml`"),
        (["run", "no.toml"], "no.toml: can't read the scenario file (No such file or directory)"),
        (["run", "broken.toml"], "broken.toml: not valid TOML:"),
        (["replay", "no.jsonl"], "no.jsonl: there is no such file or folder"),
        (["replay", "empty.jsonl"], "empty.jsonl: the file is empty; expected at least one session"),
        (["replay", "folder"], "folder: no trace in this folder; expected files named .json, .jsonl, .traj"),
        (["replay", "missing.jsonl"], "missing.jsonl:2: Object missing required field `turns`"),
        (["replay", "bad.jsonl"], "bad.jsonl:2: JSON is malformed"),
        (
            ["replay", "a.jsonl", "--defect", "hicache_early"],
            '--defect: "hicache_early" is no defect; nearest: "hicache_early_read"',
        ),
        (["replay", "a.jsonl", "--target", ""], '--target "": give bundled, or a URL such as http://'),
        (["replay", "a.jsonl", "--target", "localhost:1"], '--target "localhost:1": give bundled, or a URL'),
        (["replay", "a.jsonl", "--target", "http://[::1"], "'http://[::1' is no URL"),
        (["replay", "a.jsonl", "--defect", "hicache_early_read", "--target", SERVER_LOST], "--defect needs the"),
        (["replay", "a.jsonl", "--api", "generate"], "--api generate needs a server at a URL; the bundled stack"),
        (["replay", "a.jsonl", "--acceptance", "1.4"], '--acceptance "1.4": give KEY=VALUE, such as length_min=1.4'),
        (["replay", "a.jsonl", "--acceptance", "length=1.4"], 'unknown key length; nearest: "length_min"'),
        (["replay", "a.jsonl", "--acceptance", "length_min=0.5"], "[acceptance]: length_min = 0.5; must be at least 1"),
        (["replay", "a.jsonl", "--acceptance", "rate_max=nan"], "[acceptance]: rate_max = nan; must be at least"),
        (["replay", "a.jsonl", "--acceptance", "rate_max=much"], '[acceptance]: rate_max = "much"; expected a number'),
        (["replay", "a.jsonl", "--acceptance", "profile=no.json"], "no.json: cannot be read (No such file"),
        (["profile", "nowhere", "--out", "p.json"], "nowhere: there is no such folder; give the folder of a run"),
        (["reproduce", "AgAD0YxseG86qZg0ATdTBf"], "is no whole token; copy all of its characters"),
        (["report", "nowhere"], "nowhere: there is no such folder; give the folder of a run"),
        (["serve", "--config", "no"], "--config no: there is no such configuration; nearest:"),
        (["serve", "--defect", "no"], '--defect: "no" is no defect'),
        (["serve", "--host", "203.0.113.7"], "cannot listen on 203.0.113.7:30000"),
        (["campaign", "tiny.toml"], "tiny.toml has no defect: there is nothing to find; use `repro run`"),
    ],
)
def test_a_usage_error_is_one_sentence(args: list[str], told: str, here: Path) -> None:
    (here / "folder").mkdir()
    for name, content in {
        "broken.toml": "[load\n",
        "empty.jsonl": "\n \n",
        "missing.jsonl": SESSION + '{"id": "b"}\n',
        "bad.jsonl": SESSION + '{"id": "b", bad\n',
        "a.jsonl": SESSION,
    }.items():
        (here / name).write_text(content)
    result = repro(*args)
    assert result.exit_code == 2 and result.stdout == ""
    assert told in result.stderr and result.stderr.count("\n") == 1
    assert not (here / "runs").exists()


@pytest.mark.parametrize(
    "args",
    [
        ["run"],
        ["runn"],
        ["run", "tiny.toml", "--seed", "-1"],
        ["run", "tiny.toml", "--seed", str(2**63)],
        ["run", "tiny.toml", "--picker", "pct"],
        ["run", "tiny.toml", "--threads", "3"],
        ["replay", "x", "--scale-tokens", "0"],
        ["replay", "x", "--scale-tokens", "nan"],
        ["replay", "x", "--concurrency", "0"],
        ["replay", "x", "--time-scale", "-1"],
        ["replay", "x", "--on-anomaly", "panic"],
        ["replay", "x", "--anomaly-retries", "-1"],
        ["profile", "x"],
        ["serve", "--port", "70000"],
    ],
)
def test_an_impossible_option_is_a_usage_error(args: list[str]) -> None:
    result = repro(*args)
    assert result.exit_code == 2 and "Usage: " in result.stderr and result.stdout == ""


def test_a_usage_error_is_an_object_with_json() -> None:
    result = repro("run", "hicache_early", "--json")
    assert result.exit_code == 2
    assert only_object(result) == {
        "verdict": "usage_error",
        "error": '"hicache_early" is no scenario; nearest: "hicache_early_read". `repro list` shows them; '
        "a path to a .toml file works too",
        "run_dir": "",
    }


# -- what breaks while it runs: 4


def test_a_url_that_refuses_is_told_with_the_folder(here: Path) -> None:
    (here / "a.jsonl").write_text(SESSION)
    result = repro("replay", "a.jsonl", "--target", SERVER_LOST, "--json", "-q", "--threads", "1")
    told = only_object(result)
    assert result.exit_code == 4 and told["verdict"] == "failed"
    assert "no connection" in told["error"] and open_run(Path(told["run_dir"])).meta.state == "failed"
    assert f"`repro report {told['run_dir']}` shows it" in result.stderr


def test_runs_that_is_a_file_is_told(here: Path) -> None:
    (here / "runs").write_text("")
    result = repro("run", "tiny.toml", "-q", "--threads", "1")
    assert result.exit_code == 4 and "runs/tiny: no folder can be made there (Not a directory)" in result.stderr


def test_a_report_that_cannot_be_written_takes_neither_verdict_nor_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(run: object) -> None:
        raise KeyError("a bug in the report")

    monkeypatch.setattr("reports.run.html.write_report", full)
    result = repro("run", "tiny.toml", "-q", "--json", "--threads", "1")
    told = only_object(result)
    assert (result.exit_code, told["verdict"], told["report"]) == (0, "clean", "")
    assert f"`repro report {told['run_dir']}` writes it again" in result.stderr


def test_a_bug_is_four_because_pythons_one_would_read_as_an_anomaly(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("repro.scenario.schema.find", broken)
    result = CliRunner().invoke(app, ["run", "tiny.toml", "--json"])
    assert result.exit_code == 4 and "in broken" in result.stderr
    assert only_object(result)["error"] == "a bug of the harness: ZeroDivisionError: oh; the lines above say where"


def test_a_tampered_folder_is_told_with_both_sides() -> None:
    told = only_object(repro("run", "tiny.toml", "-q", "--json", "--threads", "1"))
    events = unpacked_log(Path(told["run_dir"]))
    events.write_text(events.read_text().replace('"what":"finished"', '"what":"vanished"', 1))
    result = repro("reproduce", told["run_dir"], "-q", "--json", "--threads", "1")
    assert result.exit_code == 4 and only_object(result)["verdict"] == "failed"
    assert "was changed after the run" in result.stderr
    assert '  before: {"e":"request","what":"vanished"' in result.stderr
    assert '  now:    {"e":"request","what":"finished"' in result.stderr


# -- runs that were killed, and their reports


def test_report_shows_a_killed_run_as_far_as_it_came(here: Path) -> None:
    folder = make_folder(here)
    for event in race_events():
        folder.emit(event)
    folder.log.flush()
    folder.add_request(make_request())
    result = repro("report", str(folder.path))
    assert result.exit_code == 0 and "The run was killed or is still going on" in result.stdout
    assert (folder.path / "report.html").is_file()


def test_report_writes_and_is_silent_when_told_to(here: Path) -> None:
    run = make_run(here)
    result = repro("report", str(run.path), "-q")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    assert (run.path / "report.html").is_file()


# -- programs of their own: signals, pipes, closed streams


def first_line(process: "subprocess.Popen[bytes]") -> str:
    assert process.stderr is not None
    return process.stderr.readline().decode()


def long_scenario(here: Path) -> None:
    text = TINY.replace("sessions = 2", "sessions = 400").replace("turns = 2", "turns = 2\ngap_s = [0, 1]")
    (here / "long.toml").write_text(text)


def test_ctrl_c_ends_in_a_verdict_of_what_was_done(here: Path) -> None:
    long_scenario(here)
    process = start("run", "long.toml", "--json")
    assert first_line(process).startswith("load  sessions")
    process.send_signal(signal.SIGINT)
    code, out, _ = ended(process)
    told = msgspec.json.decode(out)
    assert (code, told["verdict"], told["cut"]["why"]) == (5, "inconclusive", "Ctrl-C ended the run early")
    assert Path(told["report"]).is_file() and open_run(Path(told["run_dir"])).requests


@pytest.mark.parametrize("module", ["typer", "torch"])
def test_ctrl_c_before_anything_began_is_one_sentence(module: str) -> None:
    process = subprocess.run(
        [sys.executable, "-c", PRESSED_WHILE_IMPORTING, module], capture_output=True, timeout=60, check=False
    )
    assert process.returncode == 5 and b"Traceback" not in process.stderr
    assert process.stderr.endswith(b"stopped by Ctrl-C before anything was recorded\n")


def test_a_killed_run_keeps_its_requests_and_comes_again(here: Path) -> None:
    long_scenario(here)
    process = start("run", "long.toml")
    first_line(process)
    [folder] = (here / "runs" / "long").iterdir()
    while not list(open_run(folder).events()) or not (folder / "requests.jsonl").stat().st_size:
        time.sleep(0.02)
    process.kill()
    process.communicate()
    run = open_run(folder)
    assert not run.whole and run.requests and list(run.events())
    assert repro("report", str(folder)).exit_code == 0


def test_the_reader_may_leave_and_the_verdict_stays() -> None:
    process = start("run", "tiny.toml", "-q", "--json")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.wait(60) == 0 and process.stderr.read() == b""


@pytest.mark.parametrize("streams", [(0, 1, 2)])
def test_closed_streams_go_nowhere_and_not_into_the_runs_files(streams: Sequence[int], here: Path) -> None:
    def close() -> None:
        for number in streams:
            os.close(number)

    code, _, _ = ended(start("run", "tiny.toml", "--json", preexec_fn=close))
    assert code == 0
    [folder] = (here / "runs" / "tiny").iterdir()
    assert open_run(folder).verdict.word == "clean"
    assert all(line.startswith('{"e":') for line in unpacked_log(folder).read_text().splitlines())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_an_output_that_is_full_is_told() -> None:
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "repro", "list"]
        told = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, timeout=60, check=False)
    assert told.returncode == 4 and told.stderr == b"HarnessError: standard output: No space left on device\n"
