"""The check of a step's reads: whether the rows that it met are its own.

Each read gathers the stamps with the bytes and compares them with the request's own prefix hashes.
A first-hand wrong read marks the request's rows of this step as tainted: rows that it stores from then on
stem from wrong bytes, and a later read of those rows is reported with the first read as its origin.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from repro.base.probe import Access, BadRead, Component, Probes
from repro.serve.device.base import Device, Recorder
from repro.serve.kv.layout import Ints, Layout
from repro.serve.kv.pool import Home, KVPool, Names
from repro.serve.kv.stamps import Words, salt

Flags = NDArray[np.bool_]


class Reader(Protocol):
    """A request that reads in a step."""

    @property
    def id(self) -> str:
        """Return the request's id."""

    @property
    def prompt_words(self) -> Words:
        """Return the prefix hashes of the prompt's tokens."""


class ReadCheck:
    """Makes the checks of each step, and remembers which taint it has reported."""

    def __init__(self, device: Device, homes: tuple[Home, ...], names: Names, probes: Probes, index_topk: int) -> None:
        self.device = device
        self.homes = homes
        self.pool: KVPool = homes[0].pool  # all homes have the same page numbers
        self.names = names
        self.probes = probes
        self.index_topk = index_topk
        self.reported: dict[tuple[str, int], None] = {}  # (request, origin) pairs

    def step(
        self, readers: Sequence[Reader], layout: Layout, table: Ints, prefix: Words, ahead: int = 0
    ) -> "StepReads":
        """Return the checks of a step with these block tables, (members, pages), and prefix hashes of their
        tokens as the device has them; `prefix` is the step's from now on.

        A row of the draft layer depends on one token more than its position has: there `ahead` is 1, and
        `prefix` begins with the hash up to position 1.
        """
        return StepReads(self, readers, layout, table, prefix, ahead)


class StepReads:
    """The reads and stores of one step, per member, against the pages of its block table."""

    def __init__(
        self,
        check: ReadCheck,
        readers: Sequence[Reader],
        layout: Layout,
        table: Ints,
        prefix: Words,
        ahead: int,
    ) -> None:
        self._check = check
        self._requests = [reader.id for reader in readers]
        self._table = table
        size = check.pool.page_tokens
        self._ends = layout.ends
        self._in_context = (np.arange(prefix.shape[1]) < self._ends[:, None]).reshape(*table.shape, size)
        self._scored = self._ends > check.index_topk  # a shorter context is taken whole, unscored
        self.taint = np.zeros(len(readers), np.int32)  # 0, or the bad read that a member's new rows stem from
        self._member_of_token, positions = layout.member_of_token, layout.positions
        self.token_slots: Ints = table[self._member_of_token, positions // size] * size + positions % size
        self.token_prefix: Words = prefix[self._member_of_token, positions]
        for row, reader in enumerate(readers):
            # The device row, and its pages, may be another request's by mistake: the client's prompt decides.
            words = reader.prompt_words[ahead : ahead + prefix.shape[1]]
            prefix[row, : len(words)] = words
        self._expected: Words = prefix.reshape(*table.shape, size)
        self._context_pages = ((self._ends - 1) // size + 1).tolist()
        self._context_sets = [self._set(row, slice(stop)) for row, stop in enumerate(self._context_pages)]
        spans = enumerate(zip((layout.firsts // size).tolist(), self._context_pages, strict=True))
        self._store_sets = [self._set(row, slice(start, stop)) for row, (start, stop) in spans]

    def token_taint(self) -> NDArray[np.int32]:
        """Return each token's taint as of now."""
        return self.taint[self._member_of_token]

    def token_stamps(self, component: Component, layer: int) -> Words:
        """Return the stamp of each token's row."""
        return self.token_prefix ^ salt(component, layer)

    def record_store(self, recorder: Recorder, component: Component, layer: int) -> None:
        """Note the pages that this layer's store wrote."""
        for request, pages in zip(self._requests, self._store_sets, strict=True):
            recorder.access(self._access(True, component, layer, pages, request))

    def index(self, recorder: Recorder, layer: int) -> None:
        """Check the index keys that the indexer scores: the whole context of each scored member."""
        for row in np.flatnonzero(self._scored).tolist():
            recorder.access(self._access(False, "index", layer, self._context_sets[row], self._requests[row]))
        self._verify(recorder, "index", layer, self._in_context & self._scored[:, None, None])

    def latents(self, recorder: Recorder, layer: int, slots: Ints | None, counts: Ints | None) -> None:
        """Check the latents that attention gathers: `slots` (tokens, topk), of which `counts` are real.

        Without slots (numerics = "stamps") the whole context counts as gathered.
        """
        read = self._in_context if slots is None or counts is None else self._gathered(slots, counts)
        touched: Flags = np.any(read, axis=2)
        for row, request in enumerate(self._requests):
            places = np.flatnonzero(touched[row])
            if len(places):
                whole = len(places) == self._context_pages[row]
                pages = self._context_sets[row] if whole else self._set(row, places)
                recorder.access(self._access(False, "latent", layer, pages, request))
        self._verify(recorder, "latent", layer, read)

    def _gathered(self, slots: Ints, counts: Ints) -> Flags:
        members, pages, size = self._expected.shape
        page, offset = np.divmod(slots, size)
        member = self._member_of_token[:, None]
        places = (member * pages + self._place_of_page[member, page]) * size + offset
        if counts.min() < slots.shape[1]:
            places = places[np.arange(slots.shape[1]) < counts[:, None]]
        read = np.zeros((members, pages, size), bool)
        read.reshape(-1)[places] = True
        return read

    @cached_property
    def _place_of_page(self) -> Ints:
        """Return where in its block table each member has each page of its context, (members, pages)."""
        members, pages, size = self._expected.shape
        # Pages behind the context are a former owner's: they go to a column of their own.
        used = np.arange(pages) * size < self._ends[:, None]
        columns = np.where(used, self._table, self._check.pool.pages)
        places = np.zeros((members, self._check.pool.pages + 1), np.int64)
        np.put_along_axis(places, columns, np.arange(pages)[None, :], axis=1)
        return places

    def _verify(self, recorder: Recorder, component: Component, layer: int, read: Flags) -> None:
        pool, place = self._check.homes[layer]
        found = pool.stamps_at(component, place, self._table, read)
        wrong = ((found ^ self._expected) != salt(component, layer)) & read
        if wrong.any():
            for row in np.flatnonzero(wrong.any(axis=(1, 2))):
                self._report(recorder, component, layer, int(row), wrong[row], 0)
        if pool.tainted:
            taint = np.where(read & ~wrong, pool.taint_of(component, place)[self._table], 0)
            for row in np.flatnonzero(taint.any(axis=(1, 2))):
                origin = int(taint[row][taint[row] != 0].min())
                self._report(recorder, component, layer, int(row), taint[row] == origin, origin)

    def _report(self, recorder: Recorder, component: Component, layer: int, row: int, rows: Flags, origin: int) -> None:
        check, request = self._check, self._requests[row]
        if origin:
            self.taint[row] = self.taint[row] or origin
            if (request, origin) in check.reported:
                return
        bad_read = check.names.bad_read()
        self.taint[row] = origin or self.taint[row] or bad_read
        check.reported[request, origin or bad_read] = None
        stream, index = recorder.ref
        check.probes.emit(
            BadRead(
                id=bad_read,
                stream=stream,
                index=index,
                component=component,
                layer=layer,
                request=request,
                tokens=int(rows.sum()),
                first_position=int(np.flatnonzero(rows)[0]),
                pages=self._set(row, np.flatnonzero(rows.any(axis=1))),
                origin=origin,
                at_us=check.device.now_us,
            )
        )

    def _access(self, write: bool, component: Component, layer: int, pages: int, request: str) -> Access:
        home = self._check.homes[layer]
        return Access(write, home.pool.tier, component, home.layer, pages, request)

    def _set(self, row: int, places: slice | Ints) -> int:
        return self._check.names.page_sets.intern(self._table[row][places].astype(np.int32))
