"""What a cached prefix is found by.

A row of the draft layer depends on its token and on the next one. So with speculation a page is another's
only if the token behind it is the same too: each place is found by the pair of its token and the next, as
SGLang does it for EAGLE.
"""

from collections.abc import Sequence

import numpy as np

from repro.base.rng import bits64


def pair_keys(tokens: Sequence[int], vocabulary: int) -> tuple[int, ...]:
    """Return one key for each token that has a successor in `tokens`."""
    ids = np.asarray(tokens, np.int64)
    return tuple((ids[:-1] * vocabulary + ids[1:]).tolist())


def of_namespace(keys: tuple[int, ...], name: str) -> tuple[int, ...]:
    """Return the keys as requests of one `cache_key` share them, and no others; "" is a namespace too.

    The tree finds a prefix from its first token on, so it is enough that this one is nobody else's: ids and
    pairs of them are never below 0.
    """
    return (-1 - (bits64(keys[0], "cache_key", name) >> 2), *keys[1:]) if keys and name else keys
