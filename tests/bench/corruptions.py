"""Corrupting faults against the canary: python -m tests.bench.corruptions [--injections N] [--workload NAME].

Every kind of wrong bytes in every place, in stamps, until so many changes of each were read by a step. What nobody
read again says nothing about a detector, and is counted beside. Each read change counts once: noticed when the canary
reported a first-hand bad read of that page by a step that read it.
"""

import argparse
import tempfile
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path

import torch
from msgspec.structs import replace
from rich.table import Table
from scipy.stats import binomtest

from repro.fault.aftermath import Corruptions
from repro.fault.plan import CORRUPTING, PLACES, Do, Fault, When
from repro.run.run import RunOptions, run_scenario
from repro.scenario.schema import find
from repro.search.mutate.study import in_stamps
from tests.bench.results import add_record, show

PROBABILITY = {"memory.in_flight": 0.04, "memory.cached": 0.4, "memory.host": 0.2}  # of a moment; the rarely read more
OFTEN = 0.1
RUNS_MAX = 400


def changed(workload: str, place: str, seed: int) -> dict[str, Corruptions]:
    """Run a workload once with all kinds in one place; return what became of the changes, by fault."""
    torch.set_num_threads(1)
    plain = in_stamps(find(workload))
    when = When(PROBABILITY.get(place, OFTEN))
    faults = tuple(Fault(place, Do(kind), when) for kind in CORRUPTING)
    scenario = replace(plain, faults=(*plain.faults, *faults))
    with tempfile.TemporaryDirectory(prefix="corrupt") as root:
        options = RunOptions(seed, oracle_sample=0)
        return dict(run_scenario(scenario, options, root=Path(root), utc=datetime.now(UTC)).corruptions)


def measured(
    workload: str, place: str, injections: int, pool: ProcessPoolExecutor, workers: int
) -> dict[str, Corruptions]:
    """Return the sums over as many seeds as it takes for so many changes of each kind to be read."""
    sums: defaultdict[str, Corruptions] = defaultdict(Corruptions)
    for first in range(0, RUNS_MAX, workers):
        for counts in pool.map(changed, [workload] * workers, [place] * workers, range(first, first + workers)):
            for name, each in counts.items():
                total = sums[name]
                total.changed += each.changed
                total.read += each.read
                total.detected += each.detected
                total.lost += each.lost
        read = [sums[f"{place}.{kind}"].read for kind in CORRUPTING]
        print(f"{place}: {first + workers} runs, {min(read)} to {max(read)} of each kind read", flush=True)
        if min(read) >= injections:
            break
    return sums


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("places", nargs="*", default=list(PLACES))
    parser.add_argument("--injections", type=int, default=200)
    parser.add_argument("--workload", default="generic_hicache")
    parser.add_argument("--workers", type=int, default=2)
    add_record(parser)
    given = parser.parse_args()
    table = Table("fault", "changed", "never read", "read", "detected", "share (95 %)", title=given.workload)
    with ProcessPoolExecutor(given.workers, get_context("spawn")) as pool:
        for place in given.places:
            sums = measured(given.workload, place, given.injections, pool, given.workers)
            for kind in CORRUPTING:
                each = sums[f"{place}.{kind}"]
                interval = binomtest(each.detected, max(1, each.read)).proportion_ci()
                share = f"{each.detected / max(1, each.read):.1%} ({interval.low:.1%} to {interval.high:.1%})"
                unread = f"{each.changed - each.read}, {each.lost} lost track of"
                table.add_row(f"{place}.{kind}", *map(str, (each.changed, unread, each.read, each.detected, share)))
    show(given, table)


if __name__ == "__main__":
    main()
