"""Randomness without state: every draw is a function of the seed and the names of its place.

A new fault site or a new session never shifts the draws of another one, because there is no
stream to advance: the key is hashed (BLAKE2b) into the number.
"""

import hashlib

import numpy as np

Key = str | int


def bits64(seed: int, *key: Key) -> int:
    """Return 64 uniform bits for this place."""
    text = "\x1f".join((str(seed), *map(str, key)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def uniform(seed: int, *key: Key) -> float:
    """Return a uniform number in [0, 1) for this place."""
    return (bits64(seed, *key) >> 11) * 2.0**-53


def generator(seed: int, *key: Key) -> np.random.Generator:
    """Return a NumPy generator for this place (Philox, so it is the same everywhere)."""
    return np.random.Generator(np.random.Philox(key=[bits64(seed, *key, "lo"), bits64(seed, *key, "hi")]))
