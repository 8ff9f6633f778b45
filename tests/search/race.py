"""hicache_early_read at the size of a shrunk finding."""

from pathlib import Path
from typing import Any

from repro.run.options import RunOptions
from repro.scenario.schema import Scenario, parse
from repro.schedule.schedule import Schedule
from repro.search.play import Played, Trial, play

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
    return play(Trial(race_scenario(), RunOptions(schedule=schedule or Schedule(), **options), str(root)))
