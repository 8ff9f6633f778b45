"""Row-wise arithmetic whose bits do not depend on how many rows are computed together.

A matrix product's bits depend on the number of rows: the BLAS picks another kernel for small counts, and
splits rows over threads. With weights laid out by input, and whole tiles of `ROW_TILE` rows, each row's
bits are the same for every count and for one or two threads (tests/serve/model/test_rows.py). So weights are laid
out so when they are loaded, and rows are padded before a product.
"""

import torch
import torch.nn.functional as functional
from torch import Tensor

ROW_TILE = 8


def by_input(weight: Tensor) -> Tensor:
    """Return a product's weight, (..., outputs, inputs), with each input's values adjacent in memory.

    As the checkpoint has them, output by output, products of one tile take twice as long, and only tiles of
    16 rows have stable bits.
    """
    return weight.transpose(-1, -2).contiguous().transpose(-1, -2)


def padded_count(rows: int) -> int:
    """Return `rows` rounded up to whole tiles."""
    return -(-rows // ROW_TILE) * ROW_TILE


def pad_rows(rows: Tensor) -> Tensor:
    """Return the rows followed by zero rows up to a whole tile; the input itself if it is whole."""
    missing = -rows.shape[0] % ROW_TILE
    return functional.pad(rows, (0, 0, 0, missing)) if missing else rows


def rms_norm(rows: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Return rows scaled to unit root mean square, times `weight`."""
    return functional.rms_norm(rows, (rows.shape[-1],), weight, epsilon)


def gated_mlp(rows: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """Return `down(silu(gate(rows)) * up(rows))` of whole tiles; `gate_up` stacks both weights."""
    gate, up = functional.linear(rows, gate_up).chunk(2, dim=-1)
    return functional.linear(functional.silu(gate).mul_(up), down)


def rotary_table(rotary_dim: int, theta: float, positions: int) -> Tensor:
    """Return the rotations of each position, (positions, rotary_dim / 2) complex64.

    Angles are fp32 as in `transformers`; their cosines are taken in fp64, so that the bits do not depend
    on which vector kernel a table entry falls into.
    """
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim
    angles = torch.arange(positions, dtype=torch.float32)[:, None] * (1.0 / theta**exponents)
    return torch.polar(torch.ones((), dtype=torch.float64), angles.double()).to(torch.complex64)


def rotate_(pairs: Tensor, rotations: Tensor) -> None:
    """Rotate the pairs (x0, x1), (x2, x3), ... of the last dimension in place.

    The pairs stay interleaved. `transformers` puts the first halves before the second ones; queries and
    keys are permuted alike, so their products are the same.
    """
    torch.view_as_complex(pairs.view(*pairs.shape[:-1], -1, 2)).mul_(rotations)
