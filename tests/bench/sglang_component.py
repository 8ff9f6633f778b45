"""The component race side by side: `python -m tests.bench.sglang_component [--seeds 20]`.

`scenarios/sglang_component.toml` with SGLang's waits of #22811 taken away and in place; with the copies of a load
slowed down, or the compute of a layer, or nothing; with the fused index store. Printed for each side: how the runs
ended, in how many of them index rows were read wrong in every layer, and which share of the rows that were loaded
back was read wrong at first hand, by layer. Exit 1 when a side is not what it must be.
"""

import argparse
import tempfile
import tomllib
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from repro.base.probe import BadRead, CacheEvent, Event
from repro.base.toml import merged, to_toml
from repro.run.options import RunOptions, Watch
from repro.run.run import run_scenario
from repro.scenario.schema import Scenario, find, parse
from tests.bench.results import add_record, show

LAYERS = 6
SLOW_COMPUTE = [{"at": "forward.feed_forward", "do": {"kind": "delay", "us": 2000}}]
SIDES: tuple[tuple[str, dict[str, Any], bool, str], ...] = (  # name, overrides, guard in place, must be
    ("removed, load slow", {}, False, "every layer"),
    ("removed, compute slow", {"fault": SLOW_COMPUTE}, False, ""),
    ("removed, nothing slow", {"fault": []}, False, ""),
    ("removed, load slow, fused store", {"target": {"index_store_waits": True}}, False, "none"),
    ("in place, load slow", {}, True, "none"),
    ("in place, compute slow", {"fault": SLOW_COMPUTE}, True, "none"),
)


@dataclass
class Heard:
    """What the runs of a side have read wrong at first hand."""

    loaded: int = 0  # rows, in each layer
    index: Counter[int] = field(default_factory=Counter)  # by layer
    latents: int = 0

    def __call__(self, event: Event) -> None:
        if isinstance(event, CacheEvent) and event.what == "load_back":
            self.loaded += event.tokens
        elif isinstance(event, BadRead) and not event.origin:
            if event.component == "index":
                self.index[event.layer] += event.tokens
            else:
                self.latents += event.tokens


def scenario_of(overrides: dict[str, Any]) -> Scenario:
    """Return the bundled scenario with these tables on top, and no floors: each side is shown as it is."""
    tables = merged(tomllib.loads(find("sglang_component").source), overrides) | {"exercise": {}}
    return parse(to_toml({key: value for key, value in tables.items() if value}), "component", "component.toml")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    add_record(parser)
    given = parser.parse_args()
    seeds: int = given.seeds
    torch.set_num_threads(1)
    table = Table("waits of #22811", "runs", "every layer", "no wrong row", "index rows wrong, layer 0 to 5", "latents")
    failed = False
    for name, overrides, in_place, must in SIDES:
        scenario, side, words = scenario_of(overrides), Heard(), Counter[str]()
        every = silent = 0
        for seed in range(seeds):
            heard = Heard()
            with tempfile.TemporaryDirectory() as root:
                utc = datetime(2026, 11, 25, tzinfo=UTC)
                options = RunOptions(seed, in_place)
                watch = Watch(listeners=(heard,))
                words[run_scenario(scenario, options, root=Path(root), utc=utc, watch=watch).verdict.word] += 1
            every += len(heard.index) == LAYERS
            silent += not heard.index and not heard.latents
            side.loaded, side.latents = side.loaded + heard.loaded, side.latents + heard.latents
            side.index += heard.index
        failed |= (must == "every layer" and every != seeds) or (must == "none" and silent != seeds)
        told = ", ".join(f"{count} {word}" for word, count in sorted(words.items()))
        shares = " ".join(f"{side.index[layer] / side.loaded:.3f}" for layer in range(LAYERS))
        table.add_row(name, told, str(every), str(silent), shares, str(side.latents))
    show(given, table)
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
