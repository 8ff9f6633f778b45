"""What all kernels compute of rows: products, norms, rotations, the gated MLP's activation, the exponential."""

import numpy as np

from repro.serve.model.kernels.compiled import inlined
from repro.serve.model.kernels.vectors import fma, power_of_two, sum_of_squares, tile, total
from repro.serve.model.panels import PANEL, Floats

ROW_TILE = 6  # with two vectors a row: twelve sums, two loaded weights and a value fill AVX2's sixteen registers
_tile_of_6, _tile_of_4, _tile_of_2, _tile_of_1 = (tile(rows) for rows in (ROW_TILE, 4, 2, 1))

ONE = np.float32(1)
LOWEST_EXPONENT, HIGHEST_EXPONENT = np.float32(-87.3), np.float32(88.3)
LOG2_E = np.float32(1.4426950408889634)
# Added to a small number, it leaves the nearest integer in the lowest bits of the sum's mantissa.
ROUNDER = np.float32(1.5 * 2**23)
LN_2_HIGH, LN_2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
C2, C3, C4, C5, C6, C7 = map(
    np.float32, (0.5, 1.6666665459e-1, 4.1665795894e-2, 8.3334519073e-3, 1.3981999507e-3, 1.9875691500e-4)
)


@inlined
def multiply(x: Floats, panels: Floats, depth: int, out: Floats) -> None:
    """Write the product of rows `x` (rows, inputs) and a weight (panels, inputs, PANEL) into `out` (rows, columns).

    Each element is one chain of fused multiply-adds over the first `depth` inputs; `out` has all panels' columns.
    """
    rows, step, columns = x.shape[0], x.shape[1], out.shape[1]
    for panel in range(panels.shape[0]):
        w = (panel * panels.shape[1] * PANEL, PANEL, depth)
        at, row = panel * PANEL, 0
        while row + ROW_TILE <= rows:
            _tile_of_6(x, (row * step, step), panels, w, out, (row * columns + at, columns))
            row += ROW_TILE
        if row + 4 <= rows:
            _tile_of_4(x, (row * step, step), panels, w, out, (row * columns + at, columns))
            row += 4
        if row + 2 <= rows:
            _tile_of_2(x, (row * step, step), panels, w, out, (row * columns + at, columns))
            row += 2
        if row < rows:
            _tile_of_1(x, (row * step, step), panels, w, out, (row * columns + at, columns))


@inlined
def copy(source: Floats, out: Floats) -> None:
    """Write all of `source`; what numba makes of `out[:] = source` is many times slower for short rows."""
    for place in range(source.shape[0]):
        out[place] = source[place]


@inlined
def rms_norm(x: Floats, weight: Floats, epsilon: np.float32, out: Floats) -> None:
    """Write `x` (width,) scaled to unit root mean square, times `weight`."""
    width = x.shape[0]
    scale = ONE / np.sqrt(sum_of_squares(x, 0, width) / np.float32(width) + epsilon)
    for place in range(width):
        out[place] = x[place] * scale * weight[place]


@inlined
def layer_norm(x: Floats, weight: Floats, bias: Floats, epsilon: np.float32, out: Floats) -> None:
    """Write `x` (width,) with mean 0 and unit variance, times `weight` plus `bias`."""
    width = x.shape[0]
    mean = total(x, 0, width) / np.float32(width)
    for place in range(width):
        out[place] = x[place] - mean
    scale = ONE / np.sqrt(sum_of_squares(out, 0, width) / np.float32(width) + epsilon)
    for place in range(width):
        out[place] = fma(out[place] * scale, weight[place], bias[place])


@inlined
def rotate(pairs: Floats, rotation: Floats, out: Floats) -> None:
    """Write the pairs (x0, x1), (x2, x3), ... rotated by the pairs (cosine, sine); `out` may be `pairs`.

    The pairs stay interleaved. `transformers` puts the first halves before the second ones; queries and keys are
    permuted alike, so their products are the same.
    """
    for place in range(0, rotation.shape[0], 2):
        cosine, sine, x, y = rotation[place], rotation[place + 1], pairs[place], pairs[place + 1]
        out[place] = fma(x, cosine, -(y * sine))
        out[place + 1] = fma(x, sine, y * cosine)


@inlined
def exponential(x: np.float32) -> np.float32:
    """Return e to the power of `x`, to about one unit in the last place (Cephes' expf); NaN stays NaN."""
    x = LOWEST_EXPONENT if x < LOWEST_EXPONENT else x
    x = HIGHEST_EXPONENT if x > HIGHEST_EXPONENT else x
    shifted = fma(x, LOG2_E, ROUNDER)
    whole = shifted - ROUNDER
    rest = fma(-whole, LN_2_LOW, fma(-whole, LN_2_HIGH, x))
    series = fma(fma(fma(fma(fma(fma(C7, rest, C6), rest, C5), rest, C4), rest, C3), rest, C2), rest * rest, rest)
    power: np.float32 = (series + ONE) * power_of_two(shifted)
    return power


@inlined
def activate(gate_up: Floats, out: Floats) -> None:
    """Write silu(gate) * up, (rows, width), of rows that hold both halves of 2 * width, and padding."""
    width = out.shape[1]
    for row in range(out.shape[0]):
        for place in range(width):
            gate = gate_up[row, place]
            out[row, place] = gate / (ONE + exponential(-gate)) * gate_up[row, width + place]
