"""One run of many: what any process with this code needs to make it, and what a fleet keeps of it."""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec

from repro.load.wire import Api
from repro.run.options import RunOptions, Watch
from repro.run.run import Outcome, run_scenario
from repro.scenario.schema import parse
from repro.schedule.schedule import Schedule


class PlannedRun(msgspec.Struct, frozen=True):
    """A run as it crosses to a worker."""

    scenario: str  # its name
    toml: str  # its file
    seed: int
    control: bool = False
    no_faults: bool = False
    picker: Literal["timed", "random"] = "timed"
    url: str = ""  # of a server; "" for the bundled stack
    api: Api = "chat"
    root: str = ""  # where its run folder goes


def make_run(planned: PlannedRun) -> Outcome:
    """Make a run in this process. Raises what `run_scenario` raises."""
    scenario = parse(planned.toml, planned.scenario, planned.scenario)
    schedule = Schedule(planned.picker, planned.seed if planned.picker != "timed" else 0)
    options = RunOptions(planned.seed, planned.control, planned.no_faults, schedule, url=planned.url, api=planned.api)
    return run_scenario(scenario, options, root=Path(planned.root), utc=datetime.now(UTC), watch=Watch(time.monotonic))
