"""What one step computes, as plain values captured when the step is enqueued."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from repro.serve.kv.layout import Ints, Layout
from repro.serve.kv.loadback import LayerEvents
from repro.serve.kv.pool import Pages
from repro.serve.sched.request import Request
from repro.serve.sched.rows import Staging


@dataclass(frozen=True)
class Member:
    """A request's part of a step: its tokens at positions [first, first + count).

    Of a speculative window the device alone knows where it begins; there these are all positions that
    it may touch, from the earliest to the latest.
    """

    request: Request
    row: int
    first: int
    count: int
    samples: bool  # the step ends with this request's next token
    admission: int = 0  # the request's retractions so far: it may be retracted and admitted again before the step ends

    @property
    def end(self) -> int:
        return self.first + self.count

    def pages(self, page_tokens: int) -> list[int]:
        """Return the pages up to the last token."""
        return self.request.pages[: (self.end - 1) // page_tokens + 1]

    @property
    def is_current(self) -> bool:
        """Return whether the request still runs as it did when the step was planned."""
        return self.request.state == "running" and self.request.retractions == self.admission

    @property
    def scored(self) -> range:
        """Return the positions in this chunk of a prompt whose next token is to be judged."""
        start = self.request.wire.score_from
        if start is None or self.request.replayed:  # the client has its scores since the answer's first token
            return range(0)
        return range(max(self.first, start), min(self.end, len(self.request.prompt) - 1))


@dataclass(frozen=True)
class Batch:
    """One step: prefill chunks, one decode token each, or a window each: a token and `drafts` drafts."""

    number: int
    prefill: bool
    members: tuple[Member, ...]
    staging: Staging
    loads: LayerEvents | None  # the load-back whose pages this step reads
    drafts: int = 0
    replays: bool = False  # a captured graph: no host code runs between its kernels

    @cached_property
    def num_tokens(self) -> int:
        if self.drafts:
            return len(self.members) * (1 + self.drafts)
        return sum(member.count for member in self.members)

    @cached_property
    def num_scored(self) -> int:
        """Return how many tokens of prompts are judged."""
        return sum(len(member.scored) for member in self.members) if self.prefill else 0

    @cached_property
    def requests(self) -> tuple[str, ...]:
        return tuple(member.request.id for member in self.members)

    @property
    def readers(self) -> list[Request]:
        """Return each member's request (`kv.reads.Reader`)."""
        return [member.request for member in self.members]

    @cached_property
    def token_keys(self) -> int:
        """Return how many (token, key) pairs the indexer scores in one layer; a token scores its own key too.

        A window counts as whole and as early as it may begin.
        """
        counts = [1 + self.drafts if self.drafts else member.count for member in self.members]
        firsts = [member.first for member in self.members]
        return sum(count * (2 * first + 1 + count) // 2 for first, count in zip(firsts, counts, strict=True))

    @cached_property
    def rows(self) -> Ints:
        """Return each member's request row, (members,)."""
        return np.array([member.row for member in self.members], np.int64)

    @cached_property
    def sampling_members(self) -> tuple[Member, ...]:
        """Return the members that get a token."""
        return tuple(member for member in self.members if member.samples)

    def stored_pages(self, page_tokens: int) -> Pages:
        """Return the pages that the step's new rows go to, as the host knows its block tables now."""
        return _union([each.pages(page_tokens)[each.first // page_tokens :] for each in self.members])

    def context_pages(self, page_tokens: int) -> Pages:
        """Return all pages that the step may read, as the host knows its block tables now."""
        return _union([each.pages(page_tokens) for each in self.members])

    def older_pages(self, page_tokens: int) -> Pages:
        """Return the pages with rows of earlier steps, as the host knows its block tables now."""
        return _union([each.request.pages[: -(-each.first // page_tokens)] for each in self.members])

    def layout(self) -> Layout:
        """Return the layout of the tokens; not for windows, which the device lays out (`spec.verify`)."""
        assert not self.drafts, "the host does not know where a window begins"
        firsts = np.array([member.first for member in self.members], np.int64)
        return Layout(firsts, np.array([member.count for member in self.members], np.int64))


def _union(parts: list[list[int]]) -> Pages:
    return np.unique(np.concatenate(parts)).astype(np.int32)
