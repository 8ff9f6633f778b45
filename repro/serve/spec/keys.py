"""What a cached prefix is found by.

A row of the draft layer depends on its token and on the next one. So with speculation a page is another's
only if the token behind it is the same too: each place is found by the pair of its token and the next, as
SGLang does it for EAGLE.
"""

from collections.abc import Sequence

import numpy as np


def pair_keys(tokens: Sequence[int], vocabulary: int) -> tuple[int, ...]:
    """Return one key for each token that has a successor in `tokens`."""
    ids = np.asarray(tokens, np.int64)
    return tuple((ids[:-1] * vocabulary + ids[1:]).tolist())
