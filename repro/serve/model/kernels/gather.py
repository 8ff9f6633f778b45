"""Cached rows as a panel: each row one column, so that products run over many rows at once."""

import numpy as np
from numpy.typing import NDArray

from repro.serve.model.kernels.compiled import inlined
from repro.serve.model.kernels.vectors import transpose8
from repro.serve.model.panels import PANEL, Floats


@inlined
def to_panel(source: Floats, starts: NDArray[np.int64], width: int, panel: Floats) -> None:
    """Write the PANEL rows of `width` numbers that begin at `starts` in `source` as the columns of a panel."""
    whole = width // 8 * 8
    flat = source.reshape(-1)
    for row in range(0, PANEL, 8):
        for column in range(0, whole, 8):
            transpose8(flat, starts, row, column, panel, column * PANEL + row, PANEL)
        for column in range(whole, width):
            for place in range(row, row + 8):
                panel[column, place] = flat[starts[place] + column]
