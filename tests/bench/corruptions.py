"""Corrupting faults against the canary: python -m tests.bench.corruptions [--injections N] [--workload NAME].

Every kind of wrong bytes in every place, in stamps, until so many changes of each were read by a step. What nobody
read again says nothing about a detector, and is counted beside. Each read change counts once: noticed when the canary
reported a first-hand bad read of that page by a step that read it.
"""

import argparse
import tempfile
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from msgspec import UNSET
from msgspec.structs import replace
from rich.table import Table
from scipy.stats import binomtest

from repro.fault.aftermath import Corruptions
from repro.fault.kinds import KINDS
from repro.fault.plan import Fault, When
from repro.fault.points import PLACES
from repro.pool.call import alive
from repro.pool.local import LocalPool
from repro.record.verdict import FaultOutcome
from repro.run.options import RunOptions
from repro.run.run import run_scenario
from repro.scenario.schema import find
from repro.search.mutate.study import in_stamps
from tests.bench.results import add_record, show
from tests.fault.builders import CORRUPTING

PROBABILITY = {"memory.in_flight": 0.04, "memory.cached": 0.4, "memory.host": 0.2}  # of a moment; the rarely read more
OFTEN = 0.1
RUNS_MAX = 400


class Injected(NamedTuple):
    """A run of a workload with all kinds of wrong bytes in one place."""

    workload: str
    place: str
    seed: int


def changed(injected: Injected) -> dict[str, FaultOutcome]:
    """Return what became of the changes of one run, by fault."""
    plain = in_stamps(find(injected.workload))
    when = When(PROBABILITY.get(injected.place, OFTEN))
    armed = tuple(Fault(injected.place, KINDS[kind](), when) for kind in CORRUPTING)
    scenario = replace(plain, faults=(*plain.faults, *armed))
    with tempfile.TemporaryDirectory(prefix="corrupt") as root:
        options = RunOptions(injected.seed, oracle_sample=0)
        faults = run_scenario(scenario, options, root=Path(root), utc=datetime.now(UTC)).verdict.faults
    return {name: each for name, each in faults.items() if each.changed is not UNSET}


def measured(workload: str, place: str, injections: int, pool: LocalPool, workers: int) -> dict[str, Corruptions]:
    """Return the sums over as many seeds as it takes for so many changes of each kind to be read."""
    sums: defaultdict[str, Corruptions] = defaultdict(Corruptions)
    for first in range(0, RUNS_MAX, workers):
        runs = (Injected(workload, place, seed) for seed in range(first, first + workers))
        for _, counts in pool.results(changed, runs):
            for name, each in alive(counts).items():
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
    seen = read = 0
    table = Table("fault", "changed", "never read", "read", "detected", "share (95 %)", title=given.workload)
    with LocalPool(given.workers, calls_each=None) as pool:
        for place in given.places:
            sums = measured(given.workload, place, given.injections, pool, given.workers)
            for kind in CORRUPTING:
                each = sums[f"{place}.{kind}"]
                seen, read = seen + each.detected, read + each.read
                interval = binomtest(each.detected, max(1, each.read)).proportion_ci()
                share = f"{each.detected / max(1, each.read):.1%} ({interval.low:.1%} to {interval.high:.1%})"
                unread = f"{each.changed - each.read}, {each.lost} lost track of"
                table.add_row(f"{place}.{kind}", *map(str, (each.changed, unread, each.read, each.detected, share)))
    show(given, table, f"{seen:,} of {read:,} changes that were read are detected.")


if __name__ == "__main__":
    main()
