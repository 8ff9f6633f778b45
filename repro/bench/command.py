"""`repro bench layersplit`: runs the study's cells, side by side in processes, and prints the table."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.table import Table

from repro.bench.layersplit import BASE, SENSITIVITY, SENSITIVITY_LENGTH, Measured, Row, Setting, measure, row
from repro.pool.call import alive
from repro.pool.local import DAY_S, LocalPool

BAR_PERCENT = 50  # gain that one block of a bar shows
BAR_BLOCKS_MAX = 12


class Cell(NamedTuple):
    """One measurement of the study."""

    length: int
    setting: Setting
    split: bool


def run_lengths(lengths: Sequence[int], workers: int, done: Callable[[str], None]) -> list[Row]:
    """Return the study's rows, by length."""
    cells = [Cell(length, BASE, split) for length in lengths for split in (False, True)]
    measured = _run(cells, workers, done)
    return [row(length, *measured[2 * place : 2 * place + 2]) for place, length in enumerate(lengths)]


def run_sensitivity(workers: int, done: Callable[[str], None]) -> dict[str, Row]:
    """Return how the row of one length moves with what the study assumes."""
    cells = [Cell(SENSITIVITY_LENGTH, setting, split) for setting in SENSITIVITY.values() for split in (False, True)]
    measured = _run(cells, workers, done)
    pairs = (measured[place : place + 2] for place in range(0, len(cells), 2))
    return {name: row(SENSITIVITY_LENGTH, *pair) for name, pair in zip(SENSITIVITY, pairs, strict=True)}


def _run(cells: list[Cell], workers: int, done: Callable[[str], None]) -> list[Measured]:
    measured: dict[Cell, Measured] = {}
    with LocalPool(workers, timeout_s=DAY_S) as pool:
        for cell, result in pool.results(_measure, iter(cells)):
            measured[cell] = alive(result)
            arrangement = "split" if cell.split else "replicated"
            done(f"{cell.length:,} tokens, {arrangement}: {measured[cell].tokens_per_s:,.0f} tokens/s")
    return [measured[cell] for cell in cells]


def _measure(cell: Cell) -> Measured:
    return measure(*cell)


def table(rows: dict[str, Row], *, bars: bool) -> Table:
    """Return the rows as a table of at most 80 columns, with a bar for each gain if `bars`."""
    shown = Table(title="Simulated, GLM-5 on eight H100: replicated -> split", box=SIMPLE_HEAD)
    shown.add_column("")
    for head in ("K tokens/s", "gain", "hit", "TTFT p90, s"):
        shown.add_column(head, no_wrap=True, justify="right")
    if bars:
        shown.add_column("", no_wrap=True)
    for name, each in rows.items():
        one, other = each.replicated, each.split
        shown.add_row(
            name,
            f"{each.replicated_tokens_per_s / 1e3:,.1f} -> {each.split_tokens_per_s / 1e3:,.1f}",
            f"{each.gain:+.1%}",
            f"{one.device_hit + one.host_hit:.0%} -> {other.device_hit + other.host_hit:.0%}",
            f"{one.ttft_p90_s:.1f} -> {other.ttft_p90_s:.1f}",
            *(["█" * min(BAR_BLOCKS_MAX, round(100 * max(0.0, each.gain) / BAR_PERCENT))] if bars else []),
        )
    return shown
