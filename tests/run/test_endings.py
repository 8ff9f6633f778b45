"""However a run ends, its folder is whole up to there, and one error says what, where and what next."""

import errno
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from repro.base.errors import HarnessError, RecordError, ReproError, StoppedError, TargetError, UsageError
from repro.record import log
from repro.record.view import Run, open_run
from repro.run.judge.clean_decode import CleanDecoder
from repro.run.options import RunOptions
from repro.scenario.schema import parse
from repro.serve.engine import Engine
from tests.tiny import SERVER_LOST, TINY, run_tiny, tiny_scenario


def ended(error: ReproError) -> Run:
    """Return the run in the folder that an error names, every part of it read."""
    run = open_run(Path(error.run_dir))
    assert run.meta.error == str(error)
    assert isinstance(list(run.events()), list) and isinstance(run.requests, list)
    return run


def test_ctrl_c_in_the_load_judges_what_is_there(tmp_path: Path) -> None:
    pressed = []

    def progress(snapshot: Any) -> None:
        if not pressed:
            pressed.append(snapshot)
            signal.raise_signal(signal.SIGINT)

    outcome = run_tiny(tmp_path, progress=progress)
    assert outcome.verdict.word.exit_code == 5
    assert outcome.verdict.why[0] == "Ctrl-C ended the run early; the figures are of what was done"
    run = open_run(outcome.path)
    assert (run.meta.state, run.verdict.token) == ("interrupted", "")
    finishes = [record.finish for record in run.requests]
    assert "error" in finishes and "length" in finishes  # what was under way is recorded, too
    assert all(record.error in ("", "client: interrupted") for record in run.requests)


def test_ctrl_c_beside_load_and_oracle_ends_the_run_and_keeps_what_was_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object, **more: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("repro.run.run.event_verdicts", interrupted)
    with pytest.raises(StoppedError, match="stopped by Ctrl-C") as caught:
        run_tiny(tmp_path)
    assert caught.value.word.exit_code == 5
    run = ended(caught.value)
    assert run.meta.state == "interrupted" and len(run.requests) == 4 and len(list(run.events())) > 100


def test_ctrl_c_in_the_oracle_judges_what_was_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = []
    check = CleanDecoder.check

    def checking(self: CleanDecoder, *args: Any) -> Any:
        checks.append(args)
        if len(checks) == 2:
            signal.raise_signal(signal.SIGINT)
        return check(self, *args)

    monkeypatch.setattr(CleanDecoder, "check", checking)
    scenario = parse(TINY.replace('"stamps"', '"tensors"'), "tiny", "tiny.toml")
    outcome = run_tiny(tmp_path, scenario)
    assert outcome.verdict.word.exit_code == 5
    assert outcome.verdict.why == (
        "Ctrl-C ended the run early; the figures are of what was done",
        "divergence: 3 of 4 answers could not be decoded again",
    )
    run = open_run(outcome.path)
    assert sorted(record.oracle for record in run.requests) == ["", "", "", "same"]


def full_disk(monkeypatch: pytest.MonkeyPatch, room_bytes: int) -> None:
    """Let files of lines take so much, the last write in part, and nothing from then on."""
    write, left = os.pwrite, [room_bytes]

    def pwrite(file: int, content: bytes, offset: int) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = write(file, bytes(content)[: left[0]], offset)
        left[0] -= written
        return written

    monkeypatch.setattr(os, "pwrite", pwrite)


def test_a_full_disk_ends_the_run_and_what_was_written_stays_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(log, "FRAME_BYTES", 16 * 2**10)  # so that several frames are whole
    full_disk(monkeypatch, 10_000)
    with pytest.raises(RecordError, match=r"cannot be written any further \(No space left on device\)") as caught:
        run_tiny(tmp_path)
    assert caught.value.word.exit_code == 4 and "Free some space" in str(caught.value)
    run = ended(caught.value)
    assert run.meta.state == "failed" and len(list(run.events())) > 100
    assert "Traceback" not in capfd.readouterr().err


def test_runs_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("not a folder")
    with pytest.raises(RecordError, match=r"runs/tiny: no folder can be made there \(Not a directory\)"):
        run_tiny(tmp_path / "runs")


def test_a_dead_engine_is_told_and_its_traceback_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []

    def breaking(self: Engine) -> None:
        steps.append(1)
        assert len(steps) < 8, "pages are lost"

    monkeypatch.setattr(Engine, "_apply_pressure", breaking)
    with pytest.raises(HarnessError, match="the bundled engine died: AssertionError.*pages are lost") as caught:
        run_tiny(tmp_path)
    run = ended(caught.value)
    crash = (run.path / "crash.txt").read_text()
    assert "Traceback" in crash and "in breaking" in crash
    assert all(record.finish == "error" for record in run.requests) and len(run.requests) == 2


def test_a_bug_of_the_harness_is_told_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **more: object) -> None:
        raise KeyError("no such thing")

    monkeypatch.setattr("repro.run.run.judge", broken)
    with pytest.raises(HarnessError, match=r"a bug of the harness: KeyError: 'no such thing'; crash\.txt") as caught:
        run_tiny(tmp_path)
    assert len(ended(caught.value).requests) == 4
    assert "in broken" in (Path(caught.value.run_dir) / "crash.txt").read_text()


def test_a_url_that_refuses_is_told_and_the_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"v1/models: no connection: .*Is the server running there\?") as caught:
        run_tiny(tmp_path, options=RunOptions(url=SERVER_LOST))
    run = ended(caught.value)
    assert run.meta.state == "failed" and not (run.path / "crash.txt").exists()


def test_usage_errors_leave_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no http URL"):
        run_tiny(tmp_path, options=RunOptions(url="localhost:30000"))
    with pytest.raises(UsageError, match=r"tokenizer\.json: cannot be read .*give a folder with config\.json"):
        run_tiny(tmp_path, tiny_scenario(target=f'model = "{tmp_path}"'))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UsageError, match=r"tokenizer\.json: not a tokenizer"):
        run_tiny(tmp_path, tiny_scenario(target=f'model = "{tmp_path}"'))
    with pytest.raises(UsageError, match=r"nowhere\.jsonl: no such file"):
        run_tiny(tmp_path, tiny_scenario(load='trace = "nowhere.jsonl"'))
    assert [entry.name for entry in tmp_path.iterdir()] == ["tokenizer.json"]
