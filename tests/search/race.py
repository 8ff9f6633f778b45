"""hicache_early_read at the size of a shrunk finding, and a pool that plays in this process."""

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Self

import torch

from repro.run.run import RunOptions
from repro.scenario.schema import Scenario, parse
from repro.schedule.schedule import Schedule
from repro.search.play import Played, play

RACE = """
format = 1
title = "hicache_early_read, very small"
defects = ["hicache_early_read"]

[target]
config = "tiny-hicache"
numerics = "stamps"
device_pages = 28
host_pages = 200
context_tokens = 896
rows = 4
free_list = "fifo"

[load]
sessions = 3
concurrency = 3
turns = 2
prompt_tokens = 760
answer_tokens_max = 4
gap_s = [1.0, 6.0]
"""
EARLY_READ = (
    "ordering: loadback.copy_layer write x forward.index read of device index, no edge between compute and load"
)
FOREIGN = "canary: forward.index reads index rows: foreign bytes"


def race_scenario() -> Scenario:
    return parse(RACE, "race", "race.toml")


def played(root: Path, schedule: Schedule | None = None, **options: Any) -> Played:
    torch.set_num_threads(1)
    return play(race_scenario(), RunOptions(schedule=schedule or Schedule(), **options), root)


class HerePool:
    """A pool whose work is done at once, in this process."""

    def __init__(self, workers: int, *, runs_each: int | None = None) -> None:
        torch.set_num_threads(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing is left to wait for."""

    def submit(self, function: Callable[..., Any], *args: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        try:
            future.set_result(function(*args))
        except Exception as error:
            future.set_exception(error)
        return future
