"""The kernels of what stands around the layers: norms of rows, and one product."""

import numpy as np

from repro.serve.model.kernels.arguments import CUBE, MATRIX, NUMBER, PLACE, VECTOR
from repro.serve.model.kernels.compiled import kernel
from repro.serve.model.kernels.rows import multiply, rms_norm
from repro.serve.model.panels import Floats


@kernel(VECTOR, NUMBER, MATRIX, MATRIX, PLACE, PLACE)
def norm(weight: Floats, epsilon: np.float32, rows: Floats, out: Floats, first: int, last: int) -> None:
    """Write rows [first, last) scaled to unit root mean square, times `weight`."""
    for row in range(first, last):
        rms_norm(rows[row], weight, epsilon, out[row])


@kernel(CUBE, MATRIX, MATRIX, PLACE, PLACE)
def product(weight: Floats, rows: Floats, out: Floats, first: int, last: int) -> None:
    """Write rows [first, last) times a weight in panels; `out` has all panels' columns."""
    multiply(rows[first:last], weight, rows.shape[1], out[first:last])
