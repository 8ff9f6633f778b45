"""Request rows: what the device knows of each running request, and how the host tells it.

The host fills a staging buffer (pinned memory); an upload operation copies it into the rows when it
runs, not when it is enqueued. So a buffer is rewritten only after its last upload has run.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from repro.serve.device.base import Device, Event
from repro.serve.guards import Guards
from repro.serve.kv.pool import Pages
from repro.serve.kv.stamps import Words, prefix_words, token_words

STAGING_BUFFERS = 3  # the host prepares step N+1 while N runs and N-1 is read


class DeviceRows:
    """Device memory of the running requests, one row each; written by operations only."""

    def __init__(self, rows: int, context_tokens: int, page_tokens: int) -> None:
        self.table: NDArray[np.int64] = np.zeros((rows, context_tokens // page_tokens), np.int64)
        self.tokens: NDArray[np.int64] = np.zeros((rows, context_tokens), np.int64)
        self.prefix: Words = np.zeros((rows, context_tokens), np.uint64)  # hash of tokens up to here
        self.next_token: NDArray[np.int64] = np.zeros(rows, np.int64)  # future-token slots

    def put_prompt(self, row: int, tokens: NDArray[np.int64]) -> None:
        """Write a prompt and the hashes of its prefixes."""
        count = len(tokens)
        self.tokens[row, :count] = tokens
        self.prefix[row, :count] = prefix_words(tokens)

    def append(self, rows: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Take each row's future token as its token at `position` and return the tokens."""
        tokens = self.next_token[rows]
        self.tokens[rows, positions] = tokens
        self.prefix[rows, positions] = self.prefix[rows, positions - 1] + token_words(tokens, positions)
        return tokens


@dataclass
class Staging:
    """Pinned memory of one step: what the host wants written into the rows."""

    uploaded: Event
    pages: list[tuple[int, int, Pages]] = field(default_factory=list)  # row, first place, pages
    prompts: list[tuple[int, NDArray[np.int64]]] = field(default_factory=list)  # row, prompt
    first_tokens: list[tuple[int, int]] = field(default_factory=list)  # row, token chosen elsewhere

    def write_to(self, rows: DeviceRows) -> None:
        """Copy this buffer's contents of now into the rows."""
        for row, first, pages in self.pages:
            rows.table[row, first : first + len(pages)] = pages
        for row, tokens in self.prompts:
            rows.put_prompt(row, tokens)
        for row, token in self.first_tokens:
            rows.next_token[row] = token


class StagingRing:
    """The staging buffers, taken in turn."""

    def __init__(self, device: Device, guards: Guards) -> None:
        self._ring = [Staging(device.event(f"staging{n}.uploaded")) for n in range(STAGING_BUFFERS)]
        self._guards = guards
        self._next = 0

    async def take(self) -> Staging:
        """Return the next buffer, empty; waits until its last upload has run."""
        staging = self._ring[self._next]
        self._next = (self._next + 1) % STAGING_BUFFERS
        await self._guards.before_staging_reuse(staging.uploaded)
        staging.pages.clear()
        staging.prompts.clear()
        staging.first_tokens.clear()
        return staging
