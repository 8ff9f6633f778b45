"""What a corrupting fault makes of a page's bytes: pure functions over the rows of one page.

    flip       one bit of one row
    zero       every row is zeroed
    nan        every row is overwritten with a quiet NaN's pattern
    stale      the rows that the page held when it was handed out: the write to it was lost
    partial    the same from a row on: the write to it was torn
    swap       the rows of two pages are exchanged
    misdirect  the write went to another page, and this one is stale

A row is its values (none under numerics = "stamps") and the stamp that travels with them: its bytes, whoever reads it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from repro.base.lazy import torch
from repro.serve.kv.pool import Rows

QUIET_NAN = np.uint64(0x7FF8000000000000)
STAMP_BITS = 64
VALUE_BITS = 32


def damaged(
    kind: str, page: Rows, before: Rows, other: Rows, written: NDArray[np.bool_], draw: np.random.Generator
) -> tuple[Rows, ...]:
    """Return what a page holds from now on, and for a swap or a misdirected write what the other one does.

    `page` is what it holds, `before` what it held when it was handed out, `other` what the other page holds; all are
    of one page, (1, page_tokens, ...). `written`, (page_tokens,), says which rows have been written since it was handed
    out; one at least. Raises AssertionError for a kind that corrupts nothing.
    """
    match kind:
        case "flip":
            return (_flipped(page, int(draw.choice(np.flatnonzero(written))), draw),)
        case "zero":
            return (_filled(page, np.uint64(0), 0.0),)
        case "nan":
            return (_filled(page, QUIET_NAN, float("nan")),)
        case "stale":
            return (before,)
        case "partial":
            return (_torn(page, before, int(draw.integers(0, np.flatnonzero(written)[-1] + 1))),)
        case "swap":
            return other, page
        case "misdirect":
            return before, page
    raise AssertionError(f"{kind} corrupts nothing")


def same(one: Rows, two: Rows) -> NDArray[np.bool_]:
    """Return which rows hold the same bytes, (pages, page_tokens)."""
    equal: NDArray[np.bool_] = one.stamps == two.stamps
    if one.values is not None and two.values is not None:
        equal = equal & (one.values.view(torch.int32) == two.values.view(torch.int32)).all(dim=-1).numpy()
    return equal


def _flipped(page: Rows, row: int, draw: np.random.Generator) -> Rows:
    """Flip a bit of one row, drawn evenly from all that it has."""
    width = 0 if page.values is None else page.values.shape[-1]
    bit = int(draw.integers(0, STAMP_BITS + width * VALUE_BITS))
    stamps = page.stamps.copy()
    if bit < STAMP_BITS:
        stamps[0, row] ^= np.uint64(1) << np.uint64(bit)
        return page._replace(stamps=stamps)
    assert page.values is not None
    values = page.values.clone()
    column, place = divmod(bit - STAMP_BITS, VALUE_BITS)
    words = values.view(torch.int32)
    words[0, row, column] ^= int(np.uint32(1 << place).view(np.int32))
    return page._replace(values=values)


def _filled(page: Rows, stamp: np.uint64, value: float) -> Rows:
    values = None if page.values is None else torch.full_like(page.values, value)
    return Rows(values, np.full_like(page.stamps, stamp), np.zeros_like(page.taint))


def _torn(page: Rows, before: Rows, cut: int) -> Rows:
    """Return a page with new rows up to `cut` and the rows from before behind it."""
    values = None
    if page.values is not None and before.values is not None:
        values = torch.cat((page.values[:, :cut], before.values[:, cut:]), dim=1)
    stamps = np.concatenate((page.stamps[:, :cut], before.stamps[:, cut:]), axis=1)
    return Rows(values, stamps, np.concatenate((page.taint[:, :cut], before.taint[:, cut:]), axis=1))
