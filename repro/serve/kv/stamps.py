"""Stamps: an identity of each cached row, carried beside its bytes.

The stamp of a row is a hash of all tokens up to its position, the position, layer and component.
It travels with every copy of the row, so a reader can tell the origin of bytes without comparing
floating point; where a pool keeps checksums, the stamp is mixed with one of the row's values. The token
hash is a running sum of mixed (token, position) words, so a whole chunk is one cumulative sum.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from repro.base.lazy import torch
from repro.base.probe import Component

Words = NDArray[np.uint64]
_COMPONENT_SALT: dict[Component, int] = {"latent": 0x9E3779B97F4A7C15, "index": 0xC2B2AE3D27D4EB4F}


def mix(words: Words) -> Words:
    """Return splitmix64 of each word."""
    z = words + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def token_words(tokens: NDArray[np.int64], positions: NDArray[np.int64]) -> Words:
    """Return one word per (token, position); their running sum identifies the prefix."""
    return mix(tokens.astype(np.uint64) << np.uint64(32) | positions.astype(np.uint64))


def prefix_words(tokens: NDArray[np.int64]) -> Words:
    """Return a word for each token that identifies the prefix that it ends."""
    words: Words = np.cumsum(token_words(tokens, np.arange(len(tokens))), dtype=np.uint64)
    return words


def checksum(values: torch.Tensor) -> Words:
    """Return one word for each row of (rows, width) fp32: any bit that differs in one row makes it another one."""
    bits = values.numpy().view(np.uint32).astype(np.uint64)
    weights = mix(np.arange(values.shape[-1], dtype=np.uint64)) | np.uint64(1)  # odd: no bit is shifted out whole
    sums: Words = (bits * weights).sum(axis=-1, dtype=np.uint64)
    return sums


@cache
def salt(component: Component, layer: int) -> np.uint64:
    """Return a word that differs for each component and layer of one token."""
    return np.uint64((_COMPONENT_SALT[component] * (2 * layer + 1)) & 0xFFFFFFFFFFFFFFFF)
