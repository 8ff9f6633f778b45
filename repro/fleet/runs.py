"""One run of many: what any process with this code needs to make it, and how several are made at once."""

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from repro.base.errors import ReproError
from repro.base.verdict_word import VerdictWord
from repro.load.wire import Api
from repro.pool.call import Died
from repro.pool.local import LocalPool
from repro.record.verdict import RunVerdict
from repro.record.view import open_run
from repro.run.options import RunOptions, Watch
from repro.run.outcome import Outcome
from repro.run.run import run_scenario
from repro.scenario.schema import parse
from repro.schedule.schedule import Schedule

STOP_S = 20.0  # after a Ctrl-C, the runs under way have this long to judge what they have


class PlannedRun(msgspec.Struct, frozen=True):
    """A run as it crosses to a worker."""

    scenario: str  # its name
    toml: str  # its file
    seed: int
    control: bool = False
    no_faults: bool = False
    picker: Literal["timed", "random"] = "timed"
    url: str = ""  # a server's; "" for the bundled stack
    api: Api = "chat"
    root: str = ""  # folder that the run folder goes into
    report: bool = False  # the folder gets its HTML page


def make_run(planned: PlannedRun) -> Outcome:
    """Make a run in this process. Raises what `run_scenario` raises."""
    scenario = parse(planned.toml, planned.scenario, planned.scenario)
    schedule = Schedule(planned.picker, planned.seed if planned.picker != "timed" else 0)
    options = RunOptions(planned.seed, planned.control, planned.no_faults, schedule, url=planned.url, api=planned.api)
    return run_scenario(scenario, options, root=Path(planned.root), utc=datetime.now(UTC), watch=Watch(time.monotonic))


def verdict_of(planned: PlannedRun) -> RunVerdict | str:
    """Make a run in this process and return its verdict, or in words why it came to none."""
    try:
        outcome = make_run(planned)
    except ReproError as error:
        return f"exit {error.word.exit_code}: {error}"
    except Exception as error:  # counted as a run that died; the others go on
        return f"exit {VerdictWord.FAILED.exit_code}: a bug of the harness: {type(error).__name__}: {error}"
    if planned.report:
        from reports.run.html import write_report

        with suppress(Exception):  # the run is whole and judged: the verdict stands
            write_report(open_run(outcome.path))
    return outcome.verdict


Planned = TypeVar("Planned", bound=PlannedRun)


def make_runs(runs: Iterable[Planned], workers: int, on_end: Callable[[Planned, RunVerdict | str], None]) -> bool:
    """Make runs in worker processes; `on_end` takes each with its verdict, or with how it died.

    A Ctrl-C ends the runs under way, which count for nothing. Return whether all runs were made.
    """
    with LocalPool(workers) as pool:
        try:
            for planned, result in pool.results(verdict_of, iter(runs)):
                on_end(planned, result.why if isinstance(result, Died) else result)
        except KeyboardInterrupt:
            pool.interrupt(STOP_S)
            return False
    return True
