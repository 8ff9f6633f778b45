"""Findings of many races, each played again from its token in a process of its own: `python -m tests.bench.replays`.

Every bundled scenario with a defect gives a token a seed, of random schedules under the load of the suite `bank`. A
token that does not fit 64 characters points at its run's folder; such findings are counted and left out.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import torch

from repro.run.run import RunOptions
from repro.scenario.schema import Scenario, find
from repro.schedule.schedule import Schedule
from repro.search.play import Played, Trial, play
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
    with tempfile.TemporaryDirectory(prefix="replays") as root, ThreadPoolExecutor(options.workers) as replays:
        wanted = findings(scenarios, options.tokens, Path(root), counts)
        for told in replays.map(replayed, wanted):
            counts[told if told == SAME else "differs"] += 1
            if told != SAME:
                print(told, flush=True)
    show(options, f"{counts.pop(SAME, 0)} of {options.tokens} are the same run in a new process; {dict(counts)}")


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


def replayed(played: Played) -> str:
    """Return SAME, or what differed."""
    command = [sys.executable, "-m", "repro", "reproduce", played.token, "--json", "--quiet"]
    with tempfile.TemporaryDirectory(prefix="replay") as runs:
        process = subprocess.run([*command, "--runs", runs], capture_output=True, text=True, check=False)
    if process.returncode == 1 and json.loads(process.stdout)["fingerprint"] == played.fingerprint:
        return SAME
    return f"{played.token}: exit {process.returncode}: {process.stderr.strip()[-300:]}"


if __name__ == "__main__":
    main()
