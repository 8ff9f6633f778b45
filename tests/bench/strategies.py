"""Schedules to the first wrong bytes, by search strategy: python -m tests.bench.strategies [SCENARIO...].

What counts is the canary, or a divergence: ordering convicts a missing wait in any schedule, and would make
all strategies equal. The first schedule of each search is the natural one; a scenario whose natural schedule
shows wrong bytes tells nothing about strategies, and is said to.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import binom

from repro.hunt.play import Played, discard, play
from repro.hunt.search import SEARCHES, Search, Searcher
from repro.lighter import light
from repro.run import RunOptions
from repro.scenario import Scenario, find
from tests.hunt.race import race_scenario

LAYERS = {"canary", "divergence"}
RACE = "race"  # tests/hunt/race.py: hicache_early_read with six requests
CONFIDENCE = 0.95


def schedules_to_first(
    scenario: Scenario, options: RunOptions, natural: Played, search: Search, repetition: int, budget: int, root: Path
) -> int:
    """Return how many schedules a search takes, the natural one counted; budget + 1 when that is not enough."""
    searcher = Searcher(search, repetition, first_seed=repetition * budget)
    searcher.learn("natural", natural)
    for number in range(1, budget):
        arm, schedule = searcher.propose(number)
        played = play(scenario, RunOptions(options.seed, schedule=schedule, kept=options.kept), root)
        discard(played)
        if shows(played):
            return number + 1
        searcher.learn(arm, played)
    return budget + 1


def shows(played: Played) -> bool:
    """Return whether wrong bytes were seen."""
    return any(found.layer in LAYERS for found in played.found)


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
    given = parser.parse_args()
    torch.set_num_threads(1)
    table = Table("scenario", *SEARCHES, title=f"{given.repetitions} repetitions, median (95 %)")
    with tempfile.TemporaryDirectory() as folder:
        for name in given.scenarios:
            scenario = race_scenario() if name == RACE else find(name)
            options = RunOptions(kept=light(scenario, stamps=True))
            natural = play(scenario, options, Path(folder))
            if shows(natural):
                table.add_row(name, "1: its natural schedule shows it")
                continue
            cells = []
            for search in SEARCHES:
                counts = [
                    schedules_to_first(scenario, options, natural, search, repetition, given.budget, Path(folder))
                    for repetition in range(given.repetitions)
                ]
                cells.append(told(counts, given.budget))
                print(name, search, cells[-1], flush=True)
            table.add_row(name, *cells)
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
