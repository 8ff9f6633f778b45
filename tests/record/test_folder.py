"""A run folder: what is written is read back, from finished, failed and killed runs alike."""

import errno
import json
import math
import os
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectors.base import decode_finding
from repro.base.errors import RecordError, UsageError
from repro.record import folder as folder_module
from repro.record.folder import RunMeta, utc_stamp
from repro.record.table import read_table, write_table
from repro.record.view import open_run
from tests.builders import make_folder, make_request, make_run, make_verdict, race_events, race_finding


def test_a_finished_run_reads_back_whole(tmp_path: Path) -> None:
    run = make_run(tmp_path, scenario_toml="format = 1\n")
    assert run.path == tmp_path / "hicache_early_read" / "20261123T101500Z-7"
    assert run.whole and run.meta.state == "finished" and run.meta.events == len(race_events())
    assert run.verdict == make_verdict() and run.scenario_toml == "format = 1\n"
    assert list(run.events()) == race_events() and list(run.events()) == race_events()
    assert [record.request for record in run.requests][:2] == ["s1-t1", "s2-t0"]
    assert run.findings(decode_finding)[0] == race_finding()
    names = sorted(file.name for file in run.path.iterdir())
    assert names == ["events.jsonl.zst", "findings.jsonl", "requests.parquet", "run.json", "scenario.toml"]


def test_a_killed_run_reads_back_as_far_as_it_came(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    folder.emit(race_events()[0])
    folder.log.flush()
    folder.add_request(make_request("a"))
    folder.add_finding(race_finding())
    with (folder.path / "requests.jsonl").open("ab") as file:
        file.write(b'{"request":"torn')
    run = open_run(folder.path / "run.json")
    assert not run.whole and run.meta.state == "running" and run.verdict is None
    assert list(run.events()) == race_events()[:1]
    assert run.requests == [make_request("a")] and run.findings(decode_finding) == [race_finding()]
    folder.close("interrupted")
    assert open_run(folder.path).meta.state == "interrupted"


def test_a_later_record_replaces_the_earlier_one_of_the_same_attempt(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    first, retry, judged = make_request("a"), make_request("a", attempt=1), make_request("a", corrupted=True)
    for record in (first, retry, make_request("b"), judged):
        folder.add_request(record)
    folder.close("finished")
    assert open_run(folder.path).requests == [judged, retry, make_request("b")]


@given(st.text(), st.lists(st.integers(0, 2**31)), st.floats(allow_nan=False))
def test_the_table_gives_back_what_it_took(text: str, tokens: list[int], gap: float) -> None:
    record = make_request(text=text.replace("\ud800", ""), tokens=tokens, logit_gap=gap)
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"table-{os.getpid()}.parquet"
    try:
        write_table(path, [record])
        assert read_table(path) == [record]
    finally:
        path.unlink(missing_ok=True)


def test_a_request_with_nan_and_a_lone_surrogate_is_kept(tmp_path: Path) -> None:
    run = make_run(tmp_path, requests=[make_request(logprobs=[math.nan, -1.0], text="a\udc80b")])
    assert math.isnan(run.requests[0].logprobs[0]) and run.requests[0].text == "a\\udc80b"


def test_two_runs_in_the_same_second_get_two_folders(tmp_path: Path) -> None:
    assert make_folder(tmp_path).path.name == "20261123T101500Z-7"
    assert make_folder(tmp_path).path.name == "20261123T101500Z-7-2"


def test_the_folder_name_is_utc_and_never_leaves_the_root(tmp_path: Path) -> None:
    summer = datetime(2026, 7, 1, 1, 0, tzinfo=timezone(timedelta(hours=2)))
    folder = folder_module.RunFolder.create(tmp_path, RunMeta("../../etc/x", 1, utc_stamp(summer)))
    assert folder.path.parent.parent == tmp_path and folder.path.name == "20260630T230000Z-1"


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_run_json_says_running_from_the_start_and_is_never_torn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    folder = make_folder(tmp_path)
    before = (folder.path / "run.json").read_bytes()
    assert json.loads(before)["state"] == "running"

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, step, refuse)
    with pytest.raises(RecordError, match="No space left on device"):
        folder.close("finished", verdict=make_verdict())
    assert (folder.path / "run.json").read_bytes() == before
    assert sorted(file.name for file in folder.path.iterdir() if "unfinished" in file.name) == []


def test_a_full_disk_while_closing_keeps_the_lines_of_the_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(tmp_path)
    folder.add_request(make_request("a"))

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(folder_module, "write_table", refuse)
    with pytest.raises(RecordError, match="No space left"):
        folder.close("finished", verdict=make_verdict())
    folder.close("failed")
    run = open_run(folder.path)
    assert run.meta.state == "finished" and run.requests == [make_request("a")]


def test_a_disk_that_fills_in_the_middle_is_told_once_and_the_rest_of_the_run_folder_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(tmp_path)
    folder.add_request(make_request("a"))

    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", refuse)
        with pytest.raises(RecordError, match="requests.jsonl"):
            folder.add_request(make_request("b"))
        folder.add_request(make_request("c"))
        folder.add_finding(race_finding())
        folder.close("failed", error="the disk is full")
    run = open_run(folder.path)
    assert run.meta.state == "failed" and run.meta.error == "the disk is full"
    assert run.requests == [make_request("a")]


def test_a_root_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match=r"file/hicache_early_read.*Not a directory"):
        make_folder(tmp_path / "file")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path / "nowhere", "there is no such folder"),
        (lambda path: path, "no run.json.*holds 1 run.*20261123T101500Z-7"),
        (lambda path: _with(path / "x", "{"), "not the run.json of a run"),
        (lambda path: _with(path / "x", '{"scenario": 3}'), "not the run.json of a run.*scenario"),
        (
            lambda path: _with(path / "x", '{"scenario":"a","seed":1,"utc":"","verdict":{"verdict":3}}'),
            r"not the run.json of a run.*verdict\.verdict",
        ),
        (
            lambda path: _with(path / "x", '{"scenario":"a","seed":1,"utc":"","format":99}'),
            "format 99.*newer",
        ),
    ],
)
def test_a_folder_that_is_no_run_is_refused_with_a_sentence(tmp_path: Path, make: object, words: str) -> None:
    make_run(tmp_path)
    with pytest.raises(UsageError, match=words):
        open_run(make(tmp_path))  # type: ignore[operator]


def _with(path: Path, content: str) -> Path:
    path.mkdir()
    (path / "run.json").write_text(content)
    return path
