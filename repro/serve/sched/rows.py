"""Request rows: what the device knows of each running request, and how the host writes it there.

The host fills a staging buffer (pinned memory); an upload operation copies it into the rows when it
runs, not when it is enqueued. So a buffer is rewritten only after its last upload has run.

Uploads run on the compute stream, in order with the steps, or beside it (`upload_stream`):

    compute   [ step N: embed ... sample, draft pass ]          [ step N+1: embed ...
                 |  reads and writes its members' rows  |          |
    upload                                       wait ->[ rows of N+1 ]
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from repro.base.probe import Access, Tier
from repro.serve.device.base import Device, Event, Recorder
from repro.serve.guards import Guards
from repro.serve.kv.pool import Pages, PageSets
from repro.serve.kv.stamps import Words, prefix_words, token_words

BEHIND_TOKENS = 2  # an ended answer's step in flight may add one more token and the draft behind it


class RowNames(NamedTuple):
    """Names the rows in accesses, where uploads have a stream of their own and one could race with a step."""

    tier: Tier
    page_sets: PageSets


class DeviceRows:
    """Device memory of the running requests, one row each; written by operations only.

    With speculation the device alone knows how far an answer is; a row reads

        tokens    0 ............ length - 1 | length  | length + 1 ...
                  stored in all layers      | pending | drafts, taken back when they are refused
    """

    def __init__(
        self,
        rows: int,
        context_tokens: int,
        page_tokens: int,
        draft_width: int = 0,
        names: RowNames | None = None,
    ) -> None:
        self._names = names
        places = (rows, context_tokens + BEHIND_TOKENS)
        self.table: NDArray[np.int64] = np.zeros((rows, context_tokens // page_tokens), np.int64)
        self.tokens: NDArray[np.int64] = np.zeros(places, np.int64)
        self.prefix: Words = np.zeros(places, np.uint64)  # hash of tokens up to here
        self.next_token: NDArray[np.int64] = np.zeros(rows, np.int64)  # future-token slots
        self.limit: NDArray[np.int64] = np.zeros(rows, np.int64)  # tokens of prompt and longest answer
        self.length: NDArray[np.int64] = np.zeros(rows, np.int64)  # written with speculation only
        self.draft_hidden = np.zeros((rows, draft_width), np.float32)  # hidden row that the next draft starts from

    def touched(self, rows: NDArray[np.int64], *, write: bool, request: str = "") -> tuple[Access, ...]:
        """Return an access to these rows; none where the compute stream orders all of them."""
        if self._names is None or not len(rows):
            return ()
        numbers = self._names.page_sets.intern(rows.astype(np.int32))
        return (Access(write, self._names.tier, "row", 0, numbers, request),)

    def record_read(self, recorder: Recorder, members: Sequence[tuple[int, str]]) -> None:
        """Note that an operation has read these rows, each with the request that it is for."""
        for row, request in members:
            for access in self.touched(np.array([row]), write=False, request=request):
                recorder.access(access)

    def record_write(self, recorder: Recorder, rows: NDArray[np.int64]) -> None:
        """Note that an operation writes these rows."""
        for access in self.touched(rows, write=True):
            recorder.access(access)

    def put_prompt(self, row: int, tokens: NDArray[np.int64], limit: int) -> None:
        """Write a prompt, the hashes of its prefixes, and how long it may grow."""
        count = len(tokens)
        self.tokens[row, :count] = tokens
        self.prefix[row, :count] = prefix_words(tokens)
        self.limit[row] = limit

    def put_first(self, row: int, position: int, token: int) -> None:
        """Write the first token of an answer whose prompt was computed elsewhere.

        Its first draft is the token again: nothing was drafted for it, and the row's former owner has
        left a draft there that does not continue this prefix.
        """
        self.next_token[row] = token
        self.length[row] = position
        self.draft_hidden[row] = 0
        for place in (position, position + 1):
            self.put(np.array([row]), np.array([place]), np.array([token]))

    def append(self, rows: NDArray[np.int64], positions: NDArray[np.int64]) -> None:
        """Take each row's future token as its token at `position`."""
        self.put(rows, positions, self.next_token[rows])

    def put(self, rows: NDArray[np.int64], positions: NDArray[np.int64], tokens: NDArray[np.int64]) -> None:
        """Write one token a row, and the hash of the prefix that it ends."""
        self.tokens[rows, positions] = tokens
        self.prefix[rows, positions] = self.prefix[rows, positions - 1] + token_words(tokens, positions)


class Seat(NamedTuple):
    """A request that takes a row."""

    row: int
    prompt: NDArray[np.int64]
    limit: int
    first_token: int | None = None  # the answer's, when its prompt was computed elsewhere


@dataclass
class Staging:
    """Pinned memory of one step: the writes that the host wants in the rows."""

    uploaded: Event
    pages: list[tuple[int, int, Pages]] = field(default_factory=list)  # row, first place, pages
    prompts: list[Seat] = field(default_factory=list)  # ordered: a row may be taken twice in one step

    @property
    def rows(self) -> NDArray[np.int64]:
        """Return the rows that this buffer's contents of now are for, (rows,)."""
        return np.unique(np.array([row for row, *_ in (*self.pages, *self.prompts)], np.int64))

    def write_to(self, rows: DeviceRows) -> None:
        """Copy this buffer's contents of now into the rows."""
        for row, first, pages in self.pages:
            rows.table[row, first : first + len(pages)] = pages
        for seat in self.prompts:
            rows.put_prompt(seat.row, seat.prompt, seat.limit)
            if seat.first_token is not None:
                rows.put_first(seat.row, len(seat.prompt), seat.first_token)


class StagingRing:
    """The staging buffers, taken in turn."""

    def __init__(self, device: Device, guards: Guards, buffers: int) -> None:
        self._ring = [Staging(device.event(f"staging{n}.uploaded")) for n in range(buffers)]
        self._guards = guards
        self._next = 0

    async def take(self) -> Staging:
        """Return the next buffer, empty; waits until its last upload has run."""
        staging = self._ring[self._next]
        self._next = (self._next + 1) % len(self._ring)
        await self._guards.waits.before_staging_reuse(staging.uploaded)
        staging.pages.clear()
        staging.prompts.clear()
        return staging
