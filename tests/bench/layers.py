"""Requests to the first finding of each layer of truth: python -m tests.bench.layers [SCENARIO...] [--seeds N].

Each scenario of the suite `bank` with its defect, under that suite's load and faults, and with the arithmetic that the
scenario itself asks for: stamps have no tokens that could differ or be garbled. What counts is what a verdict says: how
many requests had been sent when a layer could first have told. Median over the seeds that told.
"""

import argparse
import tempfile
import tomllib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import torch
from rich.table import Table

from repro.base.toml import to_toml
from repro.fleet.nightly.suite import find_suite
from repro.run.options import RunOptions
from repro.run.run import run_scenario
from repro.scenario.schema import Scenario, find, parse
from tests.bench.results import add_record, show

LAYERS = ("ordering", "canary", "divergence", "acceptance", "text")
NO_TOKENS = ("divergence", "acceptance", "text")  # in stamps


def played(scenario: Scenario, seed: int) -> dict[str, int]:
    """Return for each layer that has a finding the requests to the first one."""
    with tempfile.TemporaryDirectory(prefix="layers") as root:
        outcome = run_scenario(scenario, RunOptions(seed), root=Path(root), utc=datetime.now(UTC))
    return {layer: first.requests for layer, first in outcome.verdict.first.items()}


def with_own_arithmetic(case: Scenario) -> Scenario:
    """Return the suite's scenario with the numerics of the bundled one."""
    tables = tomllib.loads(case.source)
    tables["target"]["numerics"] = find(case.name).config.numerics
    return parse(to_toml(tables), case.name, case.name)


def told(counts: Sequence[int], seeds: int) -> str:
    """Return the median of the seeds that told, and how many did."""
    if not counts:
        return "-"
    return f"{median(counts):g}" + ("" if len(counts) == seeds else f" ({len(counts)} of {seeds})")


def main() -> None:
    """Print a row as soon as it is known, and the table in the end."""
    suite = find_suite("bank")
    scenarios = dict(zip((case.scenario for case in suite.cases), suite.scenarios, strict=True))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenarios", nargs="*", default=list(scenarios))
    parser.add_argument("--seeds", type=int, default=3)
    add_record(parser)
    given = parser.parse_args()
    torch.set_num_threads(1)
    table = Table("defect", *LAYERS, title=f"requests to the first finding, {given.seeds} seeds")
    for name in given.scenarios:
        scenario = with_own_arithmetic(scenarios[name])
        runs = [played(scenario, seed) for seed in range(given.seeds)]
        silent = NO_TOKENS if scenario.config.numerics == "stamps" else ()
        counts = {layer: [run[layer] for run in runs if layer in run] for layer in LAYERS}
        cells = ["no tokens" if layer in silent else told(counts[layer], len(runs)) for layer in LAYERS]
        print(name, *cells, sep="  ", flush=True)
        table.add_row(name, *cells)
    show(given, table)


if __name__ == "__main__":
    main()
