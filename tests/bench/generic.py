"""The bank under workloads that know none of it: python -m tests.bench.generic [DEFECT...] [--schedules N].

The seven `generic_*` scenarios have no defect, and no fault that was made for one. Each defect of the bank that such a
target can have is put into each of them, in stamps, with seeds from 0 on until a detector convicts. The last row is
the workloads as they are: with the same seeds they must keep silent.
"""

import argparse
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from msgspec.structs import replace
from rich.table import Table

from repro.base.errors import HarnessError, ScenarioError
from repro.fault import defects
from repro.pool.call import alive
from repro.pool.local import DAY_S, LocalPool
from repro.run.options import RunOptions
from repro.run.run import run_scenario
from repro.scenario.schema import Scenario, bundled_names, find
from repro.search.mutate.study import in_stamps
from tests.bench.results import add_record, show

GENERIC = [name for name in bundled_names() if name.startswith("generic_")]
SILENT = "none of them"


class Case(NamedTuple):
    """One defect, or SILENT, in one workload."""

    defect: str
    workload: str
    schedules: int


class Tried(NamedTuple):
    """What came of one defect in one workload."""

    schedules: int  # played, the one that found it included
    found: tuple[str, ...]  # detectors that convicted it; empty: none did
    broke: str = ""  # the stack's own assertion, which is no detector's finding


def applicable(workload: Scenario, defect: str) -> bool:
    """Return whether a target like the workload's can have a defect."""
    try:
        defects.check((defect,), workload.config, workload.name)
    except ScenarioError:
        return False
    return True


def tried(case: Case) -> Tried:
    """Play a workload with a defect (with none for SILENT) until a detector convicts; at most so many seeds."""
    defects_put_in = () if case.defect == SILENT else (case.defect,)
    scenario = replace(in_stamps(find(case.workload)), defects=defects_put_in)
    broke = ""
    for seed in range(case.schedules):
        with tempfile.TemporaryDirectory(prefix="generic") as root:
            try:
                outcome = run_scenario(
                    scenario, RunOptions(seed, oracle_sample=0), root=Path(root), utc=datetime.now(UTC)
                )
            except HarnessError as error:
                broke = broke or str(error.__cause__ or error).splitlines()[0]
                continue
        if outcome.findings:
            return Tried(seed + 1, tuple(dict.fromkeys(finding.detector for finding in outcome.findings)))
    return Tried(case.schedules, (), broke)


def told(each: Tried | None) -> str:
    """Return a cell of the table."""
    if each is None:
        return "-"
    if each.found:
        return f"{each.schedules}: {', '.join(each.found)}"
    return f"{each.schedules}: {'broke: ' + each.broke[:60] if each.broke else 'silent'}"


def table_of(rows: dict[str, dict[str, Tried]], workloads: Sequence[str]) -> Table:
    """Return schedules to the first finding, and by whom."""
    table = Table("defect", *workloads, title="schedules played: detectors that convicted")
    for defect, cells in rows.items():
        table.add_row(defect, *(told(cells.get(workload)) for workload in workloads))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("defects", nargs="*", default=[*defects.DEFECTS, SILENT])
    parser.add_argument("--schedules", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--workload", action="append", choices=GENERIC, help="may be repeated; all if none")
    add_record(parser)
    given = parser.parse_args()
    workloads = given.workload or GENERIC
    rows = measured(given.defects, workloads, given.schedules, given.workers)
    bank = [defect for defect in rows if defect != SILENT]
    found = [defect for defect in bank if any(each.found for each in rows[defect].values())]
    missed = [defect for defect in bank if defect not in found]
    summary = f"{len(found)} of {len(bank)} defects found; missed: {', '.join(missed) or 'none'}"
    show(given, table_of(rows, workloads), summary)


def measured(names: Sequence[str], chosen: Sequence[str], schedules: int, workers: int) -> dict[str, dict[str, Tried]]:
    """Return what came of each defect in each workload whose target can have it."""
    workloads = [find(name) for name in chosen]
    cases = (
        Case(defect, workload.name, schedules)
        for defect in names
        for workload in workloads
        if defect == SILENT or applicable(workload, defect)
    )
    rows: dict[str, dict[str, Tried]] = {defect: {} for defect in names}
    with LocalPool(workers, timeout_s=DAY_S, calls_each=None) as pool:
        for case, result in pool.results(tried, cases):
            rows[case.defect][case.workload] = alive(result)
            print(case.defect, case.workload, told(alive(result)), flush=True)
    return rows


if __name__ == "__main__":
    main()
