"""The smallest scenario that runs: four requests, stamps instead of tensors, a fifth of a second."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch

from repro.load.listener import LoadListener, Progress
from repro.run.options import RunOptions, Watch
from repro.run.outcome import Outcome
from repro.run.run import run_scenario
from repro.scenario.schema import Scenario, parse

TINY = """
format = 1
title = "tiny"

[target]
config = "tiny-hicache"
numerics = "stamps"
device_pages = 64
host_pages = 128
context_tokens = 1024
rows = 4

[load]
sessions = 2
concurrency = 2
turns = 2
prompt_tokens = 500
answer_tokens_max = 6
"""
SERVER_LOST = "http://127.0.0.1:9"  # the discard port: nobody listens
UTC_RUN = datetime(2026, 11, 24, tzinfo=UTC)


def tiny_text(*, load: str = "", target: str = "", end: str = "") -> str:
    """Return the scenario's text with lines added to its tables, or behind them."""
    return TINY.replace("[load]\n", f"{target}\n[load]\n") + f"{load}\n{end}\n"


def tiny_scenario(**lines: str) -> Scenario:
    return parse(tiny_text(**lines), "tiny", "tiny.toml")


class Watching(LoadListener):
    """Hands each snapshot of a load to a function."""

    def __init__(self, progress: Callable[[Progress], None]) -> None:
        self._progress = progress

    def on_progress(self, snapshot: Progress) -> None:
        self._progress(snapshot)


def run_tiny(
    root: Path,
    scenario: Scenario | None = None,
    *,
    seed: int = 0,
    clock_s: Callable[[], float] = lambda: 0.0,
    progress: Callable[[Progress], None] = lambda snapshot: None,
    options: RunOptions | None = None,
) -> Outcome:
    """Run it on one thread."""
    torch.set_num_threads(1)
    watch = Watch(clock_s, Watching(progress))
    return run_scenario(scenario or tiny_scenario(), options or RunOptions(seed), root=root, utc=UTC_RUN, watch=watch)
