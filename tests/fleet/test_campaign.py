"""A scenario over many seeds: what is counted, what a dead run costs, and what Ctrl-C leaves."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from repro.cli import app
from repro.fleet import runs
from repro.fleet.campaign import SIDES, Side, corrupted_rate, exit_code, first_findings, run_campaign
from repro.record.verdict import FirstFinding, RunVerdict
from repro.scenario.schema import find
from tests.builders import make_verdict
from tests.fleet.pretended import pretended
from tests.pool.here import HerePool
from tests.small import run_small, small_scenario
from tests.tiny import run_tiny


@pytest.fixture(autouse=True)
def pretending(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "verdict_of", pretended)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the runs made in this process, where it does not matter whose they are."""
    monkeypatch.setattr(runs, "LocalPool", HerePool)


def ran(seeds: Sequence[int], done: object = None, workers: int = 2) -> list[Side]:
    listen = done or (lambda side, seed, word: None)
    scenario = find("hicache_early_read")
    return run_campaign(scenario, seeds, SIDES[:2], root=Path("runs"), workers=workers, on_end=listen)  # type: ignore[arg-type]


@pytest.mark.usefixtures("here")
def test_every_seed_runs_on_every_side_and_both_are_counted() -> None:
    told = []
    defect, control = ran([1, 2, 3], lambda *words: told.append(words))
    assert (defect.count("anomaly"), control.count("clean"), len(told)) == (3, 3, 6)
    assert exit_code([defect, control], 3) == 0
    assert corrupted_rate(defect).startswith("3 of 36 (8.33%, 95 % ")


def test_what_a_run_prints_is_what_a_campaign_reads(tmp_path: Path) -> None:
    verdict = msgspec.json.decode(msgspec.json.encode(run_tiny(tmp_path).verdict), type=RunVerdict)
    assert verdict.word == "clean" and verdict.funnel.requests == 4


def test_a_run_that_dies_is_counted_with_its_last_words_and_the_others_go_on() -> None:
    defect, control = ran([9, 10, 11])
    assert defect.errors == ("exit 4: the disk is full", "exit 1: SystemExit: no words in JSON")
    assert len(defect.verdicts) == len(control.verdicts) == 1
    assert exit_code([defect, control], 3) == 4
    assert corrupted_rate(Side("none", (), ())) == "no run"


@pytest.mark.usefixtures("here")
def test_a_defect_that_is_not_found_or_a_control_that_is_not_silent_is_one() -> None:
    found, silent = ran([1])
    assert exit_code([silent, silent], 1) == exit_code([found, found], 1) == 1


def test_ctrl_c_ends_the_runs_under_way_and_keeps_what_was_done() -> None:
    def press(side: str, seed: int, word: str) -> None:
        raise KeyboardInterrupt

    sides = ran([1, 8, 8, 8, 8], press)
    assert sum(len(side.verdicts) for side in sides) == 1 and not any(side.errors for side in sides)
    assert exit_code(sides, 5) == 5


@pytest.mark.usefixtures("here")
def test_the_command_prints_a_table_that_fits_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = CliRunner().invoke(app, ["campaign", "hicache_early_read", "--seeds", "2"])
    assert result.exit_code == 0 and max(map(len, result.stdout.splitlines())) <= 80
    assert "corrupted requests, simulated, control: 2 of 24" in result.stdout
    assert result.stderr.count("\n") == 4
    quiet = CliRunner().invoke(app, ["campaign", "hicache_early_read", "--seeds", "1", "--json", "--quiet"])
    told = msgspec.json.decode(quiet.stdout)
    assert quiet.stderr == "" and [side["name"] for side in told["sides"]] == ["defect", "control"]
    assert told["sides"][0]["verdicts"][0]["verdict"] == "anomaly"


def test_each_layer_says_after_how_many_requests_it_found_something_first() -> None:
    verdict = make_verdict()
    runs = [
        msgspec.structs.replace(verdict, first={"ordering": FirstFinding(requests, 1.0)} if requests else {})
        for requests in (7, 0, 4, 30)
    ]
    assert first_findings(Side("defect", tuple(runs), ())) == {"ordering": (3, "7 (4 to 30)")}


def test_a_run_says_what_its_layers_found_first(tmp_path: Path) -> None:
    verdict = run_small(tmp_path, small_scenario()).verdict
    first = verdict.first
    assert set(first) == {"ordering", "canary"}
    assert all(1 <= each.requests <= 10 and each.virtual_s > 0 for each in first.values())
