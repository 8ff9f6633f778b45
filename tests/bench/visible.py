"""How often the first scenario shows what it is about: python -m tests.bench.visible [--seeds 100].

The scenario is run whole with one seed after another. Of each run the table counts the layers that convict, and the
answers that a text detector convicts though the clean ones pass. The goal is one such answer in nine runs of ten.
"""

import argparse
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import msgspec
from rich.table import Table
from statsmodels.stats.proportion import proportion_confint

from reports.rates import interval_text
from repro.pool.call import alive
from repro.pool.local import LocalPool
from repro.run.options import RunOptions
from repro.run.run import run_scenario
from repro.scenario.schema import find
from tests.bench.results import add_record, show

SCENARIO = "hicache_early_read"


class Ran(msgspec.Struct, frozen=True):
    """What one seed came to."""

    requests: int
    layers: frozenset[str]
    visible: int  # answers
    processor_s: float


def run_seed(seed: int) -> Ran:
    """Run the scenario whole, in a worker."""
    began_s = time.process_time()
    with tempfile.TemporaryDirectory() as root:
        outcome = run_scenario(find(SCENARIO), RunOptions(seed), root=Path(root), utc=datetime.now(UTC))
    layers = frozenset(finding.layer for finding in outcome.findings)
    funnel = outcome.verdict.funnel
    return Ran(funnel.requests, layers, funnel.visible, time.process_time() - began_s)


def main() -> None:
    from tests.bench.visible import run_seed as imported  # a worker imports it by the name of its module

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--workers", type=int, default=2)
    add_record(parser)
    given = parser.parse_args()
    ran: dict[int, Ran] = {}
    with LocalPool(given.workers) as pool:
        for seed, result in pool.results(imported, iter(range(given.first, given.first + given.seeds))):
            ran[seed] = alive(result)
            print(seed, ran[seed], flush=True)
    table = Table(title=f"{SCENARIO}, seeds {given.first} to {given.first + given.seeds - 1}, 95 % Wilson intervals")
    for head in ("what", "runs", "share"):
        table.add_column(head, justify="left" if head == "what" else "right")
    layers = sorted({layer for each in ran.values() for layer in each.layers})
    rows = {f"layer {layer} convicts": [layer in each.layers for each in ran.values()] for layer in layers}
    rows["an answer looks wrong, and its clean answer does not"] = [each.visible > 0 for each in ran.values()]
    for name, hits in rows.items():
        interval = proportion_confint(sum(hits), len(hits), method="wilson")
        table.add_row(name, f"{sum(hits)} of {len(hits)}", interval_text(*interval))
    silent = ", ".join(str(seed) for seed, each in sorted(ran.items()) if not each.visible) or "none"
    times, requests = sorted(each.processor_s for each in ran.values()), median(each.requests for each in ran.values())
    show(
        given,
        table,
        f"Seeds without such an answer: {silent}. Requests of a run: {requests:g}.",
        f"Processor seconds of a run in a worker: median {median(times):.1f}, {times[0]:.1f} to {times[-1]:.1f}.",
    )


if __name__ == "__main__":
    main()
