"""Measures the text detectors: `python -m tests.bench.detectors [--calibration] [--misses]`.

Prints the recall for each kind of corruption, the false alarms on ordinary windows with their
Clopper-Pearson interval (windows of one file are not independent, so it is a little too narrow), how
late a corruption is found, and the processor time for 1,000 chunks.
"""

import argparse
import time
from collections import Counter, defaultdict
from statistics import median

import numpy as np
from rich.console import Console
from rich.table import Table
from statsmodels.stats.proportion import proportion_confint

from detectors.base import Finding, TextDetector
from detectors.registry import TEXT_NAMES, text_detectors
from detectors.text.rare_tokens import Vocabulary
from detectors.text.salad import BLOCK_CHARS, COMMON, NO_VOTE, Salad
from tests.bench.detector_material import CALIBRATION, REPORTED, Corruption, Window, long_windows, windows
from tests.bench.results import add_record, show

SEED = 20261124
WINDOWS = 5000  # of 600 to 2,000 characters
LONG_WINDOWS = 1000  # of 10,000 characters, without a prompt
POSITIVES_EACH = 20
CHUNK_CHARS = 4  # how the windows are streamed
# What the weights are fitted to; the other kinds show how far they carry.
WEIGHED = (
    "tokens, by frequency",
    "fragments of 1",
    "fragments of 2",
    "half bigrams",
    "bigrams 0.8",
    "fragments of many files",
)
VOCABULARY = Vocabulary(size=4096, reachable=frozenset(range(4096)))


def judge(text: str, prompt: str) -> dict[str, tuple[int, Finding]]:
    """Return the findings about a streamed answer by detector, with the character where each came."""
    found: dict[str, tuple[int, Finding]] = {}
    judges = text_detectors(prompt, VOCABULARY)
    for start in range(0, len(text), CHUNK_CHARS):
        _note(found, judges, start + CHUNK_CHARS, text[start : start + CHUNK_CHARS])
    for detector in judges:
        finding = detector.close()
        if finding is not None:
            found.setdefault(detector.name, (len(text), finding))
    return found


def _note(found: dict[str, tuple[int, Finding]], judges: list[TextDetector], at: int, piece: str) -> None:
    for detector in judges:
        finding = detector.feed(piece)
        if finding is not None:
            found.setdefault(detector.name, (at, finding))


def false_alarms(ordinary: list[Window], console: Console, *, misses: bool) -> Table:
    """Return the false alarms of each detector for each kind of file."""
    alarms: Counter[tuple[str, str]] = Counter()
    totals = Counter(window.kind for window in ordinary)
    for window in ordinary:
        for name, (at, finding) in judge(window.text, window.prompt).items():
            alarms[window.kind, name] += 1
            alarms["all but long", name] += window.kind != "long"
            if misses:
                console.print(f"{name} {window.kind} {window.name} at {at}: {finding.claim}", markup=False)
                console.print(repr(window.text[max(0, at - 160) : at]), markup=False)
    totals["all but long"] = len(ordinary) - totals["long"]
    table = Table(
        "windows", "number", *(f"{name}: alarms, rate, 95 % interval" for name in TEXT_NAMES), title="False alarms"
    )
    for kind, total in totals.items():
        table.add_row(kind, str(total), *(_rate(alarms[kind, name], total) for name in TEXT_NAMES))
    return table


def _rate(count: int, total: int) -> str:
    low, high = proportion_confint(count, total, method="beta")
    return f"{count}  {count / total:.4f}  {low:.4f} to {high:.4f}"


def recall(corruption: Corruption, num_each: int, console: Console, *, misses: bool) -> Table:
    """Return which share of each kind is found, by which detector, and how many characters late."""
    hits: Counter[tuple[str, str]] = Counter()
    totals: Counter[str] = Counter()
    late: dict[str, list[int]] = defaultdict(list)
    for positive in corruption.positives(num_each):
        found = judge(positive.text, positive.prompt)
        totals[positive.kind] += 1
        hits[positive.kind, "any"] += bool(found)
        for name, (at, _) in found.items():
            hits[positive.kind, name] += 1
            late[positive.kind].append(at - positive.at)
        if misses and not found:
            console.print(f"missed {positive.kind}: {positive.text[positive.at : positive.at + 120]!r}", markup=False)
    table = Table("corruption", "number", "any", *TEXT_NAMES, "characters until found (median)", title="Recall")
    for kind, total in totals.items():
        shares = (f"{hits[kind, name] / total:.2f}" for name in ("any", *TEXT_NAMES))
        table.add_row(kind, str(total), *shares, f"{median(late[kind]):.0f}" if late[kind] else "")
    return table


def cost(corruption: Corruption) -> Table:
    """Return the processor time of each detector for 1,000 chunks of one token with id and log-probability."""
    deltas = [delta for text in corruption.texts[:40] for delta in corruption.tokens(text[:8000])]
    table = Table("detector", "ms for 1,000 chunks", title=f"Processor time, {len(deltas)} chunks of one token")
    total = 0.0
    for index, name in enumerate(TEXT_NAMES):
        best = min(_time_ms(deltas, index) for _ in range(5))
        total += best
        table.add_row(name, f"{best:.2f}")
    table.add_row("all", f"{total:.2f}")
    return table


def _time_ms(deltas: list[str], index: int) -> float:
    detector = text_detectors("", VOCABULARY)[index]
    started = time.process_time()
    for delta in deltas:
        detector.feed(delta, (100,), (-0.1,))
    return (time.process_time() - started) * 1e6 / len(deltas)


def weights(ordinary: list[Window], corruption: Corruption) -> Table:
    """Return what the weights of the salad judge are counted from: characters by cell, without a prompt."""
    clean = sum(map(_cells, (window.text for window in ordinary)), np.zeros(NO_VOTE))
    texts = (positive.text[positive.at :] for positive in corruption.positives(20) if positive.kind in WEIGHED)
    salad = sum(map(_cells, texts), np.zeros(NO_VOTE))
    bits = np.log2((salad + 1) / salad.sum()) - np.log2((clean + 1) / clean.sum())
    table = Table("4-gram", "seen in the answer", "ordinary", "salad", "bits", title="Weights of the salad judge")
    for cell in range(NO_VOTE):
        seen = ("no", "4-gram", "6-gram")[cell % COMMON]
        shares = (f"{counts[cell] / counts.sum():.4f}" for counts in (clean, salad))
        table.add_row("common" if cell >= COMMON else "rare", seen, *shares, f"{bits[cell]:.2f}")
    return table


def _cells(text: str) -> np.ndarray:
    judge = Salad("")
    blocks = [text[start : start + BLOCK_CHARS] for start in range(0, len(text), BLOCK_CHARS)]
    cells = [judge.votes(block).cell for block in blocks]
    return np.bincount(np.concatenate(cells), minlength=NO_VOTE + 1)[:NO_VOTE]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calibration", action="store_true", help="on the files that set the thresholds")
    parser.add_argument("--misses", action="store_true", help="show false alarms and misses")
    parser.add_argument("--weights", action="store_true", help="count the weights of the salad judge instead")
    parser.add_argument("--windows", type=int, default=WINDOWS)
    parser.add_argument("--positives", type=int, default=POSITIVES_EACH)
    add_record(parser)
    chosen = parser.parse_args()
    shares = CALIBRATION if chosen.calibration else REPORTED
    console = Console(width=150)
    corruption = Corruption(shares, SEED)
    ordinary = list(windows(chosen.windows, shares, SEED))
    long = list(long_windows(LONG_WINDOWS, shares))
    if chosen.weights:
        show(chosen, weights(ordinary, corruption))
        return
    alarms = false_alarms([*ordinary, *long], console, misses=chosen.misses)
    found = recall(corruption, chosen.positives, console, misses=chosen.misses)
    show(chosen, alarms, found, cost(corruption))


if __name__ == "__main__":
    main()
