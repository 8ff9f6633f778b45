"""Storms of legal faults on the correct stack: `python -m tests.bench.pd_storm [--requests 10000]`.

Each fault of the transfer plane alone, and all of them together, over disaggregated stacks with and without
drafts. Printed: how the requests ended, what became of the pages, and what the detectors found, which must be
nothing. Every stack checks at its end that free + cached + in use + quarantined pages are all there are.
"""

import argparse
import time
from collections import Counter

from rich.table import Table

from tests.bench.results import add_record, show
from tests.serve.pd.storm import LEGAL, storm

BATCH = 500  # requests of one stack


def main() -> None:
    """Print the table; exit 1 when anything was found, lost or left without an end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    add_record(parser)
    arguments = parser.parse_args()
    table = Table(
        "faults", "requests", "answered", "aborted", "client left", "wrong", "fired", "quarantined", "findings"
    )
    failed, started, each = False, time.perf_counter(), -(-arguments.requests // len(LEGAL))
    for name, faults in LEGAL.items():
        ends: Counter[str] = Counter()
        wrong = fired = quarantined = found = 0
        for seed, first in enumerate(range(0, each, BATCH)):
            stack, seen = storm(min(BATCH, each - first), faults=faults, seed=seed, drafts=3 * (seed % 2))
            ends += seen.ends
            wrong += seen.wrong
            fired += sum(counts.fired for counts in stack.injector.counts.values())
            quarantined += stack.router.quarantined_pages
            verdicts = [detector.verdict() for detector in (stack.ordering, stack.ownership, stack.canary)]
            found += sum(len(verdict.findings) for verdict in verdicts)
        failed |= bool(wrong or found or ends.total() != each)
        counts = (each, ends["length"], ends["abort"], ends["left"], wrong, fired, quarantined, found)
        table.add_row(name, *map(str, counts))
    show(arguments, table, f"{time.perf_counter() - started:.0f} s")
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
