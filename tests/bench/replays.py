"""Findings of many races, each played again from its token in a process of its own: `python -m tests.bench.replays`.

Every bundled scenario with a defect gives a token a seed, of random schedules under the load of the suite `bank`. A
token that does not fit 64 characters points at its run's folder; such findings are counted and left out.
"""

import argparse
import tempfile
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import NamedTuple

import torch

from repro.base.errors import ReproError
from repro.pool.call import alive
from repro.pool.local import LocalPool
from repro.run.options import RunOptions
from repro.run.run import run_scenario
from repro.scenario.schema import Scenario, find
from repro.schedule.schedule import Schedule
from repro.search.play import Played, Trial, play
from repro.search.reproduce import prove, recipe_of
from tests.bench.results import add_record, show
from tests.bench.small import small_loads

TRIES_MAX = 5  # schedules for one finding
SAME = "same run"


def main() -> None:
    """Print what each replay that differed said, and how many were the same run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    add_record(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    scenarios = [find(name) for name in small_loads()]
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="replays") as root, LocalPool(options.workers, calls_each=1) as pool:
        wanted = (
            Replay(each.token, each.fingerprint) for each in findings(scenarios, options.tokens, Path(root), counts)
        )
        for _, result in pool.results(replayed, wanted):
            told = alive(result)
            counts[told if told == SAME else "differs"] += 1
            if told != SAME:
                print(told, flush=True)
    same = f"{counts.pop(SAME, 0)} of {options.tokens} are the same run in a new process."
    others = ", ".join(f"{name} ({count})" for name, count in sorted(counts.items()))
    show(options, f"{same} Schedules that gave none: {others or 'none'}.")


def findings(scenarios: list[Scenario], tokens: int, root: Path, counts: Counter[str]) -> Iterator[Played]:
    """Yield so many findings with a token, of every scenario one a seed, until it gives none."""
    found = 0
    for seed in count():
        if not scenarios:
            raise SystemExit(f"{found} findings have a token, and no scenario gives another one")
        for scenario in list(scenarios):
            if found == tokens:
                return
            played = finding(scenario, seed, root, counts)
            if played is None:
                scenarios.remove(scenario)
            else:
                found += 1
                yield played


def finding(scenario: Scenario, seed: int, root: Path, counts: Counter[str]) -> Played | None:
    """Return a finding with a token, None where TRIES_MAX schedules give none."""
    overrides = small_loads()[scenario.name]
    for attempt in range(TRIES_MAX):
        schedule = Schedule("random", seed * TRIES_MAX + attempt)
        played = play(Trial(scenario, RunOptions(seed, schedule=schedule, overrides=overrides), str(root)))
        if played.word == "anomaly" and not Path(played.token).exists():
            return played
        counts[f"{scenario.name}: {played.word}, no token"] += 1
    return None


class Replay(NamedTuple):
    """A token, and the fingerprint that must come again."""

    token: str
    fingerprint: str


def replayed(replay: Replay) -> str:
    """Return SAME, or what differed."""
    with tempfile.TemporaryDirectory(prefix="replay") as folder:
        root = Path(folder)
        try:
            recipe = recipe_of(replay.token, root)
            outcome = run_scenario(recipe.scenario, recipe.options, root=root, utc=datetime.now(UTC))
            prove(recipe, outcome)
        except ReproError as error:
            return f"{replay.token}: {error}"
    same = outcome.verdict.word.exit_code == 1 and outcome.fingerprint == replay.fingerprint
    return SAME if same else f"{replay.token}: exit {outcome.verdict.word.exit_code}, fingerprint {outcome.fingerprint}"


if __name__ == "__main__":
    main()
