"""Where the tokens of a step are: which request each belongs to, and at which position."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Layout:
    """Tokens of a step, member by member: each has those at positions [first, first + count).

    firsts, counts     member 0: 4, 2     member 1: 0, 3
    tokens             | 4   5            | 0   1   2
    starts             | 0                | 2
    """

    firsts: Ints  # (members,)
    counts: Ints  # (members,), at least 1

    @cached_property
    def ends(self) -> Ints:
        """Return the position behind each member's last token, (members,)."""
        return self.firsts + self.counts

    @cached_property
    def starts(self) -> Ints:
        """Return the place of each member's first token among all tokens, (members,)."""
        starts: Ints = np.cumsum(self.counts) - self.counts
        return starts

    @cached_property
    def last_tokens(self) -> Ints:
        """Return the place of each member's last token among all tokens, (members,)."""
        return self.starts + self.counts - 1

    @cached_property
    def member_of_token(self) -> Ints:
        """Return each token's member, (tokens,)."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    @cached_property
    def positions(self) -> Ints:
        """Return each token's position, (tokens,)."""
        return np.arange(self.counts.sum()) + np.repeat(self.firsts - self.starts, self.counts)
