"""What one step computes, as plain values captured when the step is enqueued."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from repro.serve.kv.loadback import LayerEvents
from repro.serve.sched.request import Request
from repro.serve.sched.rows import Staging

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Member:
    """A request's part of a step: its tokens at positions [first, first + count)."""

    request: Request
    row: int
    first: int
    count: int
    samples: bool  # the step ends with this request's next token

    @property
    def end(self) -> int:
        return self.first + self.count


@dataclass(frozen=True)
class Batch:
    """One step: prefill chunks, or one decode token each."""

    number: int
    prefill: bool
    members: tuple[Member, ...]
    staging: Staging
    loads: LayerEvents | None  # the load-back whose pages this step reads

    @cached_property
    def num_tokens(self) -> int:
        return sum(member.count for member in self.members)

    @cached_property
    def requests(self) -> tuple[str, ...]:
        return tuple(member.request.id for member in self.members)

    @cached_property
    def token_keys(self) -> int:
        """Return how many (token, key) pairs the indexer scores in one layer; a token scores its own key too."""
        return sum(member.count * (member.first + 1 + member.end) // 2 for member in self.members)

    def layout(self) -> tuple[Ints, Ints, Ints]:
        """Return each token's member and position, and the place of each sampling member's last token."""
        counts = np.array([member.count for member in self.members], np.int64)
        firsts = np.array([member.first for member in self.members], np.int64)
        ends = np.cumsum(counts)
        member_of_token = np.repeat(np.arange(len(counts)), counts)
        positions = np.arange(ends[-1]) - np.repeat(ends - counts, counts) + np.repeat(firsts, counts)
        samples = np.array([member.samples for member in self.members], bool)
        return member_of_token, positions, (ends - 1)[samples]
