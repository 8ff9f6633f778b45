"""Measures `repro detect FILE` on ordinary text: `python -m tests.bench.detect_files [--windows 20000] [--alarms]`.

Windows of 600 to 2,000 characters of source files, JSON and tables that come with Python packages (site-packages of
this environment and of the interpreter under it) are written as JSON Lines, half of them with what stands before
them in their file as the prompt, and judged by the command's own code. Every finding is a false alarm. Files that
the detectors were built or calibrated on are left out. Windows of one file are not independent, so the
Clopper-Pearson intervals are a little too narrow.
"""

import argparse
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table
from statsmodels.stats.proportion import proportion_confint

from detectors.registry import TEXT_NAMES
from detectors.text.tables.build import CODE, read, roots, share
from repro.base.rng import generator
from repro.tools.detect_texts import detect_answers
from tests.bench.detector_material import REPORTED
from tests.bench.results import add_record, show

SEED = 20261125
SUFFIXES = {"source": CODE, "json": frozenset((".json",)), "table": frozenset((".csv", ".tsv", ".dat"))}
PARTS = {"table": 0.05, "json": 0.3, "source": 0.0}  # source files make up the rest
WINDOWS_A_FILE = {"source": 2, "json": 12, "table": 12}  # as in detector_material: no file outweighs the others
FILE_CHARS_MAX = 400_000
FILE_CHARS_MIN = 800
PROMPT_CHARS = 30_000
LOOPS_MAX = 0.005  # the goal for false alarms of loops


class Window(msgspec.Struct, frozen=True):
    """A line of the file that is judged."""

    id: str
    text: str
    prompt: str = ""


def files_of(kind: str) -> list[tuple[str, Path]]:
    """Return the files of a kind that no detector has seen, with their names."""
    standard, packages = roots()
    found = [(root, path) for root in (packages, standard / "site-packages") for path in sorted(root.rglob("*"))]
    return [
        (str(path.relative_to(root)), path)
        for root, path in found
        if path.suffix in SUFFIXES[kind] and path.is_file() and (root != packages or share(path, root) in REPORTED)
    ]


def windows(kind: str, number: int) -> Iterator[Window]:
    """Yield windows of files of a kind, every second one with its prompt; fewer if the files are too few."""
    texts = {name: text for name, path in files_of(kind) if (text := read(path, FILE_CHARS_MAX))}
    names = [name for name in sorted(texts) if len(texts[name]) >= FILE_CHARS_MIN]
    draw = generator(SEED, "detect files", kind)
    order = draw.permutation(np.repeat(np.arange(len(names)), WINDOWS_A_FILE[kind]))[:number]
    for index, place in enumerate(order):
        text = texts[names[place]]
        length = int(draw.integers(600, 2001))
        start = int(draw.integers(0, max(1, len(text) - length)))
        prompt = text[max(0, start - PROMPT_CHARS) : start] if index % 2 else ""
        yield Window(f"{kind}:{names[place]}:{start}", text[start : start + length], prompt)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=20_000)
    parser.add_argument("--alarms", action="store_true", help="show each false alarm")
    add_record(parser)
    chosen = parser.parse_args()
    console = Console(width=150)
    table = Table("windows", "files", "number", *(f"{name}: alarms, rate, 95 %" for name in TEXT_NAMES))
    totals: Counter[str] = Counter()
    for kind, part in PARTS.items():
        number = round(chosen.windows * part) if part else chosen.windows - totals["all"]
        made = list(windows(kind, number))
        alarms = _alarms(made, console, shown=chosen.alarms)
        names = len({window.id.split(":")[1] for window in made})
        table.add_row(kind, str(names), f"{len(made):,}", *(_rate(alarms[name], len(made)) for name in TEXT_NAMES))
        totals.update(alarms | Counter({"all": len(made)}))
    table.add_row("all", "", f"{totals['all']:,}", *(_rate(totals[name], totals["all"]) for name in TEXT_NAMES))
    loops = totals["repetition"] / totals["all"]
    show(chosen, table, f"loops: {loops:.4f} of all windows, the goal is at most {LOOPS_MAX}")


def _alarms(made: list[Window], console: Console, *, shown: bool) -> Counter[str]:
    """Return how many windows each detector convicts."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "windows.jsonl"
        path.write_bytes(b"".join(msgspec.json.encode(window) + b"\n" for window in made))
        detected = detect_answers([path])
    assert detected.answers == len(made)
    for each in detected.findings if shown else ():
        console.print(f"{each.finding.detector} {each.id}: {each.finding.claim}", markup=False)
    return Counter(detected.detectors)


def _rate(count: int, total: int) -> str:
    if not total:
        return "-"
    low, high = proportion_confint(count, total, method="beta")
    return f"{count}  {count / total:.4f}  {low:.4f} to {high:.4f}"


if __name__ == "__main__":
    main()
