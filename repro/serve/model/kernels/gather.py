"""Cached rows as a panel: each row one column, so that products run over many rows at once."""

import numpy as np
from numpy.typing import NDArray

from repro.serve.model.kernels.compiled import inlined
from repro.serve.model.kernels.vectors import copy_panel, prefetch, transpose8
from repro.serve.model.panels import PANEL, Floats

LINE = 16  # fp32 numbers in one line of the processor's cache


@inlined
def fetch(source: Floats, starts: NDArray[np.int64], width: int) -> None:
    """Have the rows of `width` numbers that begin at `starts` brought into the processor's cache."""
    for start in starts:
        for at in range(start, start + width, LINE):
            prefetch(source, at)


@inlined
def to_panel(source: Floats, starts: NDArray[np.int64], width: int, panel: Floats) -> None:
    """Write the PANEL rows of `width` numbers that begin at `starts` in `source` as the columns of a panel.

    Meanwhile the rows that begin at the places behind, if any, are fetched.
    """
    whole, following = width // 8 * 8, starts[PANEL:]
    for row in range(0, PANEL, 8):
        fetch(source, following[row : row + 8], width)
        for column in range(0, whole, 8):
            transpose8(source, starts, row, column, panel, column * PANEL + row, PANEL)
    flat = source.reshape(-1)
    for column in range(whole, width):
        for place in range(PANEL):
            panel[column, place] = flat[starts[place] + column]


@inlined
def to_values(source: Floats, starts: NDArray[np.int64], width: int, panels: Floats) -> None:
    """Write the first `width` numbers of the rows that begin at `starts` into (panels, rows, PANEL)."""
    whole, rows = width // PANEL, panels.shape[1]
    flat = source.reshape(-1)
    for row in range(starts.shape[0]):
        for panel in range(whole):
            copy_panel(source, starts[row] + panel * PANEL, panels, (panel * rows + row) * PANEL)
        for place in range(width - whole * PANEL):
            panels[whole, row, place] = flat[starts[row] + whole * PANEL + place]
