"""How fast everything that a user waits for is, here and in an earlier checkout: python -m tests.bench.speed.

    git worktree add /tmp/before COMMIT
    python -m tests.bench.speed --before /tmp/before

Each row is measured in both trees in turn, each time in a new process: the median of `--repeats`. Processor time is
that of the process and all that it started. Rows that take long are measured only when they are named (`--rows`).
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table

from repro.scenario.schema import bundled_names
from tests.bench.results import add_record, show

HERE = Path(__file__).parents[2]
REPEATS = 5
EXPLORED = "hicache_early_read"
RACES = tuple(name for name in bundled_names() if not name.startswith(("generic_", "sglang_")))

# Plays a light schedule of a scenario again and again in one process, as the worker of a hunt does.
SCHEDULES = """
import json, sys, tempfile, time
from repro.run.options import RunOptions
from repro.scenario import overrides, schema
from repro.search.play import Trial, play
scenario = schema.find(sys.argv[1])
if hasattr(overrides, "light_loads"):
    load = overrides.light_loads(scenario, stamps=True)[0]
else:
    load = overrides.light_load(scenario, stamps=True)
trial = Trial(scenario, RunOptions(overrides=load), tempfile.mkdtemp())
play(trial)
times = []
while len(times) < int(sys.argv[2]):
    began = time.process_time()
    play(trial)
    times.append(time.process_time() - began)
print(json.dumps({"cpu_s": sum(times) / len(times)}))
"""
RACE_OF_SIX = """
import json, pathlib, tempfile, time
from tests.search.race import played
root = pathlib.Path(tempfile.mkdtemp())
played(root)
began = time.process_time()
for _ in range(20):
    played(root)
print(json.dumps({"cpu_s": (time.process_time() - began) / 20}))
"""


@dataclass(frozen=True)
class Measured:
    """What one process took. `figures` are others that a row has."""

    cpu_s: float
    wall_s: float
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """Something that a user waits for, its goal in processor seconds on a slow laptop, and how it is measured."""

    name: str
    goal_s: float
    measure: Callable[[Path, Path], Measured]
    named_only: bool = False


def command(tree: Path, folder: Path, *words: str) -> tuple[Measured, str]:
    """Run `python WORDS` of a tree in a folder; return what it took and what it printed."""
    environment = os.environ | {"PYTHONPATH": str(tree)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    ended = subprocess.run([sys.executable, *words], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    wall_s = time.monotonic() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if ended.returncode not in (0, 1):  # 1: an anomaly was found
        raise SystemExit(f"{tree}: {' '.join(words)[:200]} ended with exit code {ended.returncode}")
    return Measured(cpu_s, wall_s), ended.stdout


def of_command(*words: str) -> Callable[[Path, Path], Measured]:
    """Return what measures `repro WORDS`."""
    return lambda tree, folder: command(tree, folder, "-m", "repro", *words)[0]


def of_script(script: str, *words: str) -> Callable[[Path, Path], Measured]:
    """Return what measures a script that prints its processor time."""

    def measure(tree: Path, folder: Path) -> Measured:
        took, printed = command(tree, folder, "-c", script, *words)
        return Measured(json.loads(printed.splitlines()[-1])["cpu_s"], took.wall_s)

    return measure


def of_first_run(tree: Path, folder: Path) -> Measured:
    """Measure the README's first command, with the size of its log and the answers that look wrong."""
    took, printed = command(tree, folder, "-m", "repro", "run", EXPLORED, "--quiet", "--json")
    verdict = json.loads(printed)
    run = folder / verdict["run_dir"]
    log = sum(file.stat().st_size for file in run.glob("events.*"))
    return Measured(took.cpu_s, took.wall_s, {"log MB": log / 1e6, "visible answers": verdict["funnel"]["visible"]})


def of_detect(tree: Path, folder: Path) -> Measured:
    """Measure `repro detect` on one short answer."""
    (folder / "answer.txt").write_text("The function returns the number of pages that are free.\n")
    return command(tree, folder, "-m", "repro", "detect", "answer.txt")[0]


ROWS = (
    Row("repro --help", 0.3, of_command("--help")),
    Row("repro list", 0.3, of_command("list")),
    Row("repro detect FILE", 0.6, of_detect),
    Row(f"repro run {EXPLORED}", 45.0, of_first_run),
    Row("light schedule, hicache_early_read", 0.5, of_script(SCHEDULES, "hicache_early_read", "3")),
    Row("light schedule, pd_reuse_before_drain", 0.5, of_script(SCHEDULES, "pd_reuse_before_drain", "3")),
    Row("light schedule, layersplit_scratch_reuse", 0.5, of_script(SCHEDULES, "layersplit_scratch_reuse", "3")),
    Row("schedule of the race with six requests", 0.02, of_script(RACE_OF_SIX)),
    Row("suite clean, 10,400 schedules", 1440.0, of_command("nightly", "--suite", "clean", "--quiet"), named_only=True),
    Row("repro mutate", 600.0, of_command("mutate", "--quiet"), named_only=True),
)


def hunt_of(tree: Path, folder: Path, race: str) -> tuple[float, int, bool]:
    """Return processor seconds and schedules until a hunt has found a race and proved it, and whether it has."""
    took, printed = command(
        tree, folder, "-m", "repro", "hunt", race, "--budget", "60", "--workers", "1", "--quiet", "--json"
    )
    told = json.loads(printed)
    return took.cpu_s, told["runs"], bool(told["findings"])


def speed_table(trees: dict[str, Path], rows: list[Row], repeats: int) -> Table:
    """Measure rows in every tree in turn."""
    table = Table(title=f"Processor seconds, median of {repeats}")
    for head in ("what", *trees, "before / after", "goal on a slow laptop", "wall seconds", "beside"):
        table.add_column(head, justify="left" if head in ("what", "beside") else "right")
    for row in rows:
        taken: dict[str, list[Measured]] = {name: [] for name in trees}
        for _ in range(repeats):
            for name, tree in trees.items():
                with tempfile.TemporaryDirectory() as folder:
                    taken[name].append(row.measure(tree, Path(folder)))
            print(f"{row.name}: {[round(each[-1].cpu_s, 3) for each in taken.values()]}", file=sys.stderr)
        cpu = {name: statistics.median(each.cpu_s for each in took) for name, took in taken.items()}
        wall = " to ".join(f"{statistics.median(each.wall_s for each in took):.2f}" for took in taken.values())
        ratio = cpu["before"] / cpu["after"] if "before" in cpu else None
        beside = "; ".join(
            f"{name}: {', '.join(_figures(took[-1]))}" for name, took in taken.items() if took[-1].figures
        )
        table.add_row(
            row.name, *(f"{each:.3f}" for each in cpu.values()), f"{ratio:.1f}" if ratio else "", f"{row.goal_s:g}",
            wall, beside,
        )  # fmt: skip
    return table


def _figures(measured: Measured) -> Iterator[str]:
    return (f"{name} {value:.3g}" for name, value in measured.figures.items())


def hunts_table(trees: dict[str, Path], races: list[str]) -> Table:
    """Hunt every race in every tree."""
    table = Table(title="Hunts, one worker: schedules and processor seconds until found and proved in a new process")
    table.add_column("race")
    for name in trees:
        for head in ("schedules", "seconds"):
            table.add_column(f"{name}: {head}", justify="right")
    table.add_column("before / after", justify="right")
    ratios = []
    for race in races:
        cells: list[str] = []
        seconds: dict[str, float] = {}
        for name, tree in trees.items():
            with tempfile.TemporaryDirectory() as folder:
                seconds[name], runs, found = hunt_of(tree, Path(folder), race)
            cells += [f"{runs}" if found else f"not in {runs}", f"{seconds[name]:.1f}"]
        if "before" in seconds:
            ratios.append(seconds["before"] / seconds["after"])
        table.add_row(race, *cells, f"{ratios[-1]:.1f}" if ratios else "")
        print(race, cells, file=sys.stderr)
    if ratios:
        table.add_row("median", *[""] * (2 * len(trees)), f"{statistics.median(ratios):.1f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="a checkout to compare with")
    parser.add_argument("--rows", nargs="*", help="only rows whose names begin so")
    parser.add_argument("--hunts", nargs="*", metavar="RACE", help="hunt these races too; all if none is named")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    add_record(parser)
    given = parser.parse_args()
    trees = {"before": given.before.resolve()} if given.before else {}
    trees["after"] = HERE
    if given.rows is None:
        rows = [row for row in ROWS if not row.named_only]
    else:
        rows = [row for row in ROWS if row.name.startswith(tuple(given.rows))]
    tables = [speed_table(trees, rows, given.repeats)] if rows else []
    if given.hunts is not None:
        tables.append(hunts_table(trees, given.hunts or list(RACES)))
    show(given, *tables)


if __name__ == "__main__":
    main()
