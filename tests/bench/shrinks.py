"""How small findings of the bank become: python -m tests.bench.shrinks [SCENARIO...] [--budget N].

Each scenario with a defect, under the load that the suite `bank` gives it, seeds from 0 on until one is convicted. What
`repro shrink` would then do is done in this process.
"""

import argparse
import tempfile
from pathlib import Path

import msgspec
import torch
from msgspec.structs import replace
from rich.table import Table

from repro.run.options import RunOptions
from repro.scenario.overrides import light_load
from repro.scenario.schema import Scenario, find
from repro.schedule.overrides import Overrides
from repro.search.play import Played, Trial, chief, discard, play
from repro.search.shrink.shrinker import Shrinker
from tests.bench.results import add_record, show
from tests.bench.small import small_loads
from tests.pool.here import HerePool

SEEDS_MAX = 10
REQUESTS_MAX, DEVIATIONS_MAX = 3, 5  # the goal


class Shrunk(msgspec.Struct):
    """What became of one scenario's finding."""

    signature: str
    before: int  # requests
    requests: int
    deviations: int
    replays: int
    silent: bool  # with the guard in place

    @property
    def is_small(self) -> bool:
        """Return whether it meets the goal."""
        return self.silent and self.requests <= REQUESTS_MAX and self.deviations <= DEVIATIONS_MAX


def convicted(scenario: Scenario, root: Path) -> Played | None:
    """Return the first run that a detector which the scenario expects convicts, under the suite's load, a hunt's, or
    the scenario's own."""
    for overrides in (small_loads()[scenario.name], light_load(scenario, stamps=True), Overrides(stamps=True)):
        for seed in range(SEEDS_MAX):
            played = play(Trial(scenario, RunOptions(seed, overrides=overrides), str(root)))
            if any(each.detector in scenario.expect.detectors for each in played.found):
                return played
            discard(played)
    return None


def shrunk(scenario: Scenario, budget: int, root: Path) -> Shrunk | None:
    """Return what becomes of the scenario's chief finding; None where there is none."""
    case = convicted(scenario, root)
    if case is None:
        return None
    signature = chief(case.found, scenario).signature
    before = case.requests
    shrinker = Shrinker(
        scenario, signature, HerePool(1), root=root, budget=budget - 1, workers=1
    )  # fmt: skip
    case = shrinker.shrink(case)
    control = play(Trial(scenario, replace(case.options, control=True), str(root)))
    silent = signature not in control.signatures and not control.error
    return Shrunk(signature, before, case.requests, len(case.deviations), shrinker.replays + 1, silent)


def main() -> None:
    """Print a row as soon as it is known, and the table in the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenarios", nargs="*", default=list(small_loads()))
    parser.add_argument("--budget", type=int, default=400)
    add_record(parser)
    given = parser.parse_args()
    torch.set_num_threads(1)
    table = Table("scenario", "cause", "requests", "deviations", "replays", "guard silent", "small")
    small = 0
    for name in given.scenarios:
        with tempfile.TemporaryDirectory(prefix="shrinks") as root:
            result = shrunk(find(name), given.budget, Path(root))
        if result is None:
            row = ("no finding", "", "", "", "", "no")
        else:
            small += result.is_small
            sizes = (f"{result.before} -> {result.requests}", str(result.deviations), str(result.replays))
            row = (result.signature, *sizes, *("yes" if each else "no" for each in (result.silent, result.is_small)))
        print(name, *row, sep="  ", flush=True)
        table.add_row(name, *row)
    summary = (
        f"{small} of {len(given.scenarios)} come to {REQUESTS_MAX} requests and {DEVIATIONS_MAX} deviations at most"
    )
    show(given, table, summary)


if __name__ == "__main__":
    main()
