"""Bytes of cached rows: what a token's latent and index row hold where no model computes them.

A row is its stamp (see `repro.serve.kv.stamps`), times one odd factor for each eight bytes: every byte depends on
the stamp, and a torn row matches no stamp. A request that has read wrong bytes stores other rows from then on: its
stamps are mixed with the number of that read.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from repro.base.probe import Component
from repro.serve.kv.stamps import Words, mix, salt

Bytes = NDArray[np.uint8]
LATENT_BYTES = 1152  # 512 + 64 values in bf16
INDEX_KEY_BYTES, INDEX_SCALE_BYTES = 128, 4
WIDTHS: dict[Component, int] = {"latent": LATENT_BYTES, "index": INDEX_KEY_BYTES + INDEX_SCALE_BYTES}
_WORDS = -(-LATENT_BYTES // 8)
_FACTORS: Words = np.concatenate((np.ones(1, np.uint64), mix(np.arange(1, _WORDS, dtype=np.uint64)) | np.uint64(1)))


def rows_of(prefix: Words, component: Component, layer: int, origin: int = 0) -> Bytes:
    """Return (tokens, width) bytes of the rows that end these prefixes; `origin` is the bad read they stem from."""
    return _expanded(prefix ^ salt(component, layer) ^ _mark(origin), WIDTHS[component])


class Found(NamedTuple):
    """What a read met, by row."""

    wrong: NDArray[np.bool_]  # neither the expected row, nor one that stems from a bad read
    origin: NDArray[np.int64]  # 0, or the bad read that the row stems from


def compare(found: Bytes, prefix: Words, component: Component, layer: int, bad_reads: int) -> Found:
    """Return how (tokens, width) bytes differ from the rows of these prefixes, after so many bad reads."""
    expected = prefix ^ salt(component, layer)
    differs = (found != _expanded(expected, WIDTHS[component])).any(axis=1)
    origin = np.zeros(len(found), np.int64)
    if bad_reads and differs.any():
        marks = mix(np.arange(1, bad_reads + 1, dtype=np.uint64))
        stamps = np.ascontiguousarray(found[differs, :8]).view(np.uint64)[:, 0]
        whole = (found[differs] == _expanded(stamps, WIDTHS[component])).all(axis=1)
        of_mark = {int(mark): number for number, mark in enumerate(marks, 1)}
        met = [of_mark.get(mark, 0) for mark in (stamps ^ expected[differs]).tolist()]
        origin[differs] = np.where(whole, met, 0)
    return Found(differs & (origin == 0), origin)


def as_bytes(tensor: torch.Tensor) -> Bytes:
    """Return a tensor's memory, a view (rows, bytes); its rows must be contiguous."""
    flat: Bytes = tensor.view(torch.uint8).flatten(1).numpy()
    return flat


def _expanded(stamps: Words, width: int) -> Bytes:
    words = stamps[:, None] * _FACTORS[: -(-width // 8)]
    return words.view(np.uint8)[:, :width]


def _mark(origin: int) -> np.uint64:
    return mix(np.array([origin], np.uint64))[0] if origin else np.uint64(0)
