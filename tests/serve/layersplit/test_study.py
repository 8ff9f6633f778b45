"""The throughput study at a size that a test can afford: GLM-5's 78 layers, two ranks, short prompts."""

import json
from io import StringIO

import pytest
from rich.console import Console
from typer.testing import CliRunner

from repro.bench import command
from repro.bench.layersplit import BASE, Measured, measure, replaced, row
from repro.cli import app

SMALL = replaced(BASE, ranks=2, sessions=3, clients=2, turns=5, memory_tokens=20_480, host_ratio=0.1)
LENGTH = 8_000
NAME_COLUMNS = 26


def test_splitting_costs_where_all_fits_and_gains_where_it_does_not() -> None:
    tight = row(LENGTH, measure(LENGTH, SMALL, False), measure(LENGTH, SMALL, True))
    assert tight.gain > 0
    assert tight.split.device_hit > tight.replicated.device_hit
    assert tight.split.capacity_tokens > 1.9 * tight.replicated.capacity_tokens
    assert tight.replicated.evicted_tokens > 0
    assert tight.split.operations > 0 and tight.split.steps >= 3
    roomy = replaced(SMALL, memory_tokens=61_440)
    ample = row(LENGTH, measure(LENGTH, roomy, False), measure(LENGTH, roomy, True))
    assert ample.replicated.device_hit == ample.split.device_hit
    assert -0.5 < ample.gain < 0


def test_a_cell_is_the_same_every_time() -> None:
    few = replaced(SMALL, turns=2, sessions=1)
    assert measure(LENGTH, few, True) == measure(LENGTH, few, True)


def made(cell: command.Cell) -> Measured:
    return Measured(2e5 if cell.split else 1e5, 1.0, 2.0, 3.0, 0.5, 0.25, 0, 100, 200, 10, 1)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let cells be made up, in this process."""
    monkeypatch.setattr(command, "_run", lambda cells, workers, done: [made(cell) for cell in cells])


@pytest.mark.usefixtures("quick")
def test_json_has_the_rows_and_nothing_else() -> None:
    told = CliRunner().invoke(app, ["bench", "layersplit", "--lengths", "40000", "--lengths", "60000", "--json"])
    assert told.exit_code == 0, told.output
    rows = json.loads(told.stdout)["rows"]
    assert [each["length"] for each in rows] == [40_000, 60_000]
    assert [(r["replicated_tokens_per_s"], r["split_tokens_per_s"], r["gain"]) for r in rows] == [(1e5, 2e5, 1.0)] * 2


@pytest.mark.usefixtures("quick")
def test_the_tables_name_each_row() -> None:
    rows = command.run_sensitivity(1, lambda told: None)
    out = StringIO()
    Console(file=out, width=80).print(command.table(rows, bars=False))
    lines = out.getvalue().splitlines()
    words = " ".join(" ".join(line[:NAME_COLUMNS].split()) for line in lines)
    assert all(name in words for name in rows)
    assert sum("100.0 -> 200.0   +100.0%" in line for line in lines) == len(rows)  # whole, in 80 columns
    refused = CliRunner().invoke(app, ["bench", "layersplit", "--sensitivity", "--lengths", "40000"])
    assert refused.exit_code == 2
