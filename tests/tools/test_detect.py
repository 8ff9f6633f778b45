"""The detectors over a file of events: as documented, found and silent, and what is wrong is said with its line."""

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

import detectors
from repro.cli import app
from repro.record.log import log_of
from repro.run.options import RunOptions
from repro.run.run import run_scenario
from tests.builders import unpacked_log
from tests.search.race import EARLY_READ, race_scenario
from tests.tiny import UTC_RUN


def documented() -> list[str]:
    text = (Path(detectors.__file__).parent / "EVENTS.md").read_text()
    block = re.search(r"```jsonl\n(.*?)```", text, re.DOTALL)
    assert block is not None
    return block.group(1).splitlines()


def detected(path: Path) -> tuple[int, dict[str, Any]]:
    result = CliRunner().invoke(app, ["detect", "--events", str(path), "--json"])
    return result.exit_code, msgspec.json.decode(result.stdout)


def written(tmp_path: Path, lines: list[str]) -> Path:
    file = tmp_path / "trace.jsonl"
    file.write_text("".join(line if isinstance(line, Torn) else f"{line}\n" for line in lines))
    return file


class Torn(str):
    """A line without its newline."""


def test_the_documented_example_races_and_its_edge_makes_it_silent(tmp_path: Path) -> None:
    lines = documented()
    code, told = detected(written(tmp_path, lines))
    assert code == 1 and told["detectors"] == {"ordering": "anomaly", "ownership": "clean", "canary": "not_applicable"}
    (finding,) = told["findings"]
    assert "load_back on stream load writes and indexer on stream compute reads the index rows" in finding["claim"]
    assert (finding["evidence"]["first"]["site"], finding["evidence"]["second"]["site"]) == (
        "cache.py:80",
        "forward.py:31",
    )
    lines[-1] = json.dumps(json.loads(lines[-1]) | {"after": [[["load", 0], "layer 4 is loaded"]]})
    code, told = detected(written(tmp_path, lines))
    assert (code, told["verdict"], told["findings"], told["events"]) == (0, "clean", [], 4)


def test_a_last_line_without_a_newline_is_judged_too(tmp_path: Path) -> None:
    *before, last = documented()
    code, told = detected(written(tmp_path, [*before, Torn(last)]))
    assert (code, told["events"], len(told["findings"])) == (1, 4, 1)


@pytest.mark.parametrize("control", [False, True])
def test_the_log_of_a_run_is_judged_as_the_run_was(control: bool, tmp_path: Path) -> None:
    outcome = run_scenario(race_scenario(), RunOptions(control=control), root=tmp_path, utc=UTC_RUN)
    code, told = detected(log_of(outcome.path))
    assert detected(unpacked_log(outcome.path)) == (code, told)
    assert {each["signature"] for each in told["findings"]} == (set() if control else {EARLY_READ})
    assert code == (0 if control else 1) and told["checked"]["ordering"] > 0


def test_a_file_without_accesses_proves_nothing(tmp_path: Path) -> None:
    assert detected(written(tmp_path, []))[0] == 3


def skipping(lines: list[str]) -> list[str]:
    return [*lines, lines[3].replace('"index": 0', '"index": 5')]


def waiting_for_nobody(lines: list[str]) -> list[str]:
    return [lines[0], lines[3].replace('"accesses"', '"after": [[["load", 3], "w"]], "accesses"')]


@pytest.mark.parametrize(
    ("change", "wrong", "next_step"),
    [
        (lambda lines: ["{"], "trace.jsonl:1: no event", "EVENTS.md"),
        (lambda lines: [*lines[:3], Torn(lines[3][:-9])], "trace.jsonl:4: no event", "the last line is torn; write"),
        (lambda lines: lines[1:], "trace.jsonl:1: page set 1 was not named before", "write its"),
        (skipping, "trace.jsonl:5: compute: operation 5 came after 0", "EVENTS.md"),
        (waiting_for_nobody, "trace.jsonl:2: somebody waited for operation 3 of stream load", "EVENTS.md"),
    ],
)
def test_a_wrong_line_is_told_with_its_number(change: Any, wrong: str, next_step: str, tmp_path: Path) -> None:
    code, told = detected(written(tmp_path, change(documented())))
    assert code == 2 and wrong in told["error"] and next_step in told["error"]


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    code, told = detected(tmp_path / "none.jsonl")
    assert code == 2 and "there is no such file" in told["error"]
