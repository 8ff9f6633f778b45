"""Schedules to the first wrong bytes, by search strategy: python -m tests.bench.strategies [SCENARIO...].

No fault helps, and the load is the suite bank's. Where ordering convicts the natural schedule, as it does a missing
wait in any schedule, what counts is the canary, or a divergence; elsewhere any finding. The first schedule of each
search is the natural one; a scenario whose natural schedule shows wrong bytes tells nothing about strategies, and is
said to.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch
from msgspec.structs import replace
from rich.table import Table
from scipy.stats import binom

from repro.run.options import RunOptions
from repro.scenario.schema import Scenario, find
from repro.schedule.overrides import Overrides
from repro.search.play import Played, Trial, discard, play
from repro.search.searcher import SEARCHES, Search, Searcher
from tests.bench.results import add_record, show
from tests.bench.small import small_loads
from tests.search.race import race_scenario

WRONG_BYTES = frozenset(("canary", "divergence"))
RACE = "race"  # tests/search/race.py: hicache_early_read with six requests
CONFIDENCE = 0.95


def schedules_to_first(
    scenario: Scenario, natural: Played, search: Search, repetition: int, budget: int, root: Path
) -> int:
    """Return how many schedules a search takes, the natural one counted; budget + 1 when that is not enough."""
    searcher = Searcher(search, repetition, first_seed=repetition * budget)
    searcher.learn("natural", natural)
    for number in range(1, budget):
        arm, schedule = searcher.propose(number)
        played = play(Trial(scenario, replace(natural.options, schedule=schedule), str(root)))
        discard(played)
        if shows(played, unlike=natural):
            return number + 1
        searcher.learn(arm, played)
    return budget + 1


def shows(played: Played, unlike: Played | None = None) -> bool:
    """Return whether wrong bytes were seen, or anything at all where the other run, `unlike` this one, saw nothing."""
    if unlike is not None and not unlike.found:
        return bool(played.found)
    return any(found.layer in WRONG_BYTES for found in played.found)


def told(counts: Sequence[int], budget: int) -> str:
    """Return the median with its interval from order statistics, and how many searches found nothing."""
    ordered = sorted(counts)
    low = int(binom.ppf((1 - CONFIDENCE) / 2, len(ordered), 0.5))
    ends = (ordered[max(0, low - 1)], ordered[min(len(ordered) - 1, len(ordered) - low)])
    middle, least, most = (f">{budget}" if each > budget else f"{each:g}" for each in (median(ordered), *ends))
    missed = sum(count > budget for count in counts)
    return f"{middle} ({least} to {most})" + (f", {missed} of {len(counts)} found nothing" if missed else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenarios", nargs="*", default=[RACE])
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--budget", type=int, default=100)
    parser.add_argument("--strategy", action="append", choices=SEARCHES, help="may be repeated; all if none")
    add_record(parser)
    given = parser.parse_args()
    torch.set_num_threads(1)
    table = Table("scenario", *(given.strategy or SEARCHES), title=f"{given.repetitions} repetitions, median (95 %)")
    with tempfile.TemporaryDirectory() as folder:
        for name in given.scenarios:
            scenario = race_scenario() if name == RACE else find(name)
            overrides = Overrides(stamps=True) if name == RACE else small_loads()[name]
            options = RunOptions(no_faults=True, overrides=overrides)
            natural = play(Trial(scenario, options, folder))
            if shows(natural):
                table.add_row(name, "1: its natural schedule shows it")
                continue
            cells = []
            for search in given.strategy or SEARCHES:
                counts = [
                    schedules_to_first(scenario, natural, search, repetition, given.budget, Path(folder))
                    for repetition in range(given.repetitions)
                ]
                cells.append(told(counts, given.budget))
                print(name, search, cells[-1], flush=True)
            table.add_row(name, *cells)
    show(given, table)


if __name__ == "__main__":
    main()
