"""Cached rows as a panel: each row one column, so that products run over many rows at once."""

import numpy as np
from numpy.typing import NDArray

from repro.serve.model.kernels.compiled import inlined
from repro.serve.model.kernels.vectors import copy_panel, prefetch8, transpose8
from repro.serve.model.panels import PANEL, Floats

LINE = 16  # fp32 numbers in one line of the processor's cache


@inlined
def fetch(source: Floats, starts: NDArray[np.int64], first: int, width: int) -> None:
    """Have the 8 rows of `width` numbers that begin at `starts[first:first + 8]` brought into the processor's cache."""
    for column in range(0, width, LINE):
        prefetch8(source, starts, first, column)


@inlined
def to_panel(source: Floats, starts: NDArray[np.int64], width: int, panel: Floats) -> None:
    """Write the PANEL rows of `width` numbers that begin at `starts` in `source` as the columns of a panel.

    If `starts` has those of the next panel too, they are fetched meanwhile.
    """
    whole, has_next = width // 8 * 8, starts.shape[0] >= 2 * PANEL
    for row in range(0, PANEL, 8):
        if has_next:
            fetch(source, starts, PANEL + row, width)
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
