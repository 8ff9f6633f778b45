"""Requests to the first finding of each layer of truth: python -m tests.bench.layers [SCENARIO...] [--seeds N].

Each scenario of the suite `bank` with its defect, under that suite's load and faults, and with the arithmetic that the
scenario itself asks for: stamps have no tokens that could differ or be garbled. What counts is how many requests had
been received when a layer could first have told, on the run's own clock: at the racing operation, at the bad read, and
for what is seen in an answer at its end. Median over the seeds that told.
"""

import argparse
import tempfile
import tomllib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.table import Table

from detectors.base import Finding
from repro.base.probe import Event, RequestEvent
from repro.nightly.suite import find_suite
from repro.run import RunOptions, run_scenario
from repro.scenario import Scenario, find, parse
from repro.toml import to_toml

LAYERS = ("ordering", "ownership", "canary", "divergence", "acceptance", "text")
NO_TOKENS = ("divergence", "acceptance", "text")  # in stamps
ENDS = ("finished", "aborted")


class Clock:
    """When each request was received, and when it ended."""

    def __init__(self) -> None:
        self.received_us: list[float] = []
        self.ended_us: dict[str, float] = {}

    def feed(self, event: Event) -> None:
        """Take an event; others than those of requests are ignored."""
        if isinstance(event, RequestEvent):
            if event.what == "received":
                self.received_us.append(event.at_us)
            elif event.what in ENDS:
                self.ended_us[event.request] = event.at_us

    def requests_until(self, finding: Finding) -> int:
        """Return how many requests had been received when a finding could first be told."""
        at_us = finding.at_us if finding.at_us else self.ended_us.get(finding.request, self.received_us[-1])
        return sum(received_us <= at_us for received_us in self.received_us)


def played(scenario: Scenario, seed: int) -> dict[str, int]:
    """Return for each layer that has a finding the requests to the first one."""
    clock = Clock()
    with tempfile.TemporaryDirectory(prefix="layers") as root:
        outcome = run_scenario(
            scenario, RunOptions(seed), root=Path(root), utc=datetime.now(UTC), listeners=(clock.feed,)
        )
    first: dict[str, int] = {}
    for finding in outcome.findings:
        layer = "ownership" if finding.detector == "ownership" else finding.layer
        requests = clock.requests_until(finding)
        first[layer] = min(requests, first.get(layer, requests))
    return first


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
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
