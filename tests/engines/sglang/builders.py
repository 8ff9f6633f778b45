"""The component race at a size that a test can afford."""

import importlib.metadata
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

from repro.base.probe import BadRead, Event, Op
from repro.engines.sglang import pinned
from repro.run.options import RunOptions, Watch
from repro.run.outcome import Outcome
from repro.run.run import run_scenario
from repro.scenario.schema import Scenario, parse

LAYERS = 6
SLOW_LOAD = '[[fault]]\nat = "loadback.copy_layer"\ndo = { kind = "delay", us = 2000 }'
SLOW_COMPUTE = '[[fault]]\nat = "forward.feed_forward"\ndo = { kind = "delay", us = 5000 }'
SMALL = """
format = 1
title = "sglang_component, small"
defects = ["hicache_early_read"]

[target]
engine = "sglang"
numerics = "stamps"
device_pages = 64
host_pages = 192
context_tokens = 2048
rows = 8
index_store_waits = {fused_store}

[load]
sessions = 6
concurrency = 6
turns = 4
prompt_tokens = 1200
gap_s = [1.0, 6.0]
trace = "synth:code-review"

{fault}

[exercise]
load_backs = 1
evictions = 1
"""


def _installed() -> str:
    try:
        return importlib.metadata.version("sglang")
    except importlib.metadata.PackageNotFoundError:
        return "no version"


INSTALLED = _installed()
needs_sglang = pytest.mark.skipif(
    INSTALLED != pinned.VERSION,
    reason=f"{INSTALLED} of sglang is installed: pip install --no-deps sglang=={pinned.VERSION}",
)


@dataclass
class Heard:
    """What a run's events say about its reads."""

    wrong: Counter[tuple[str, int]] = field(default_factory=Counter)  # rows read wrong at first hand, by layer
    sites: set[tuple[str, str]] = field(default_factory=set)  # (operation, line)
    index_waits: Counter[bool] = field(default_factory=Counter)  # index reads by whether they wait themselves

    def __call__(self, event: Event) -> None:
        if isinstance(event, BadRead) and not event.origin:
            self.wrong[event.component, event.layer] += event.tokens
        elif isinstance(event, Op):
            self.sites.add((event.name, event.site))
            if event.name == "forward.index":
                self.index_waits[any("LayerLoadingEvent" in edge.why for edge in event.after)] += 1


def component(fault: str = SLOW_LOAD, *, fused_store: bool = False) -> Scenario:
    """Return a scenario of 24 requests."""
    return parse(SMALL.format(fault=fault, fused_store=str(fused_store).lower()), "component", "component.toml")


def run_component(tmp_path: Path, scenario: Scenario, *, seed: int = 7, control: bool = False) -> tuple[Outcome, Heard]:
    """Run it on one thread."""
    torch.set_num_threads(1)
    heard = Heard()
    options = RunOptions(seed, control)
    utc = datetime(2026, 11, 25, tzinfo=UTC)
    return run_scenario(scenario, options, root=tmp_path, utc=utc, watch=Watch(listeners=(heard,))), heard
