"""The check of a step's reads: whether the rows that it met are its own.

Each read gathers the stamps with the bytes and compares them with the request's own prefix hashes. A step that
continues the one before, in a layer that nothing but its own store has written since, needs to compare the rows of
that store only.

A first-hand wrong read marks the request's rows of this step as tainted: rows that it stores from then on
stem from wrong bytes, and a later read of those rows is reported with the first read as its origin.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple, Protocol

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
        self.steps = 0
        self.last: dict[int, StepReads] = {}  # the last step, by `ahead`
        self.right: dict[_Read, _Checked] = {}  # what was last found to be right in every row

    def step(
        self, readers: Sequence[Reader], layout: Layout, table: Ints, prefix: Words, ahead: int = 0
    ) -> "StepReads":
        """Return the checks of a step with these block tables, (members, pages), and prefix hashes of their
        tokens as the device has them; `prefix` is the step's from now on.

        A row of the draft layer depends on one token more than its position has: there `ahead` is 1, and
        `prefix` begins with the hash up to position 1.
        """
        reads = StepReads(self, readers, layout, table, prefix, ahead)
        self.last[ahead] = reads
        return reads


class _Read(NamedTuple):
    """What a step reads in one operation."""

    component: Component
    layer: int
    ahead: int


class _Checked(NamedTuple):
    """A read of whole contexts that found no wrong stamp: by which step, and how many writes its layer had had."""

    step: int
    writes: int
    origins: NDArray[np.int32]  # (members,): the bad read that rows of each member's context stem from, or 0


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
        check.steps += 1
        self._step = check.steps
        self._ahead = ahead
        self._requests = [reader.id for reader in readers]
        self._table = table
        size = check.pool.page_tokens
        self._ends = layout.ends
        self._in_context = (np.arange(prefix.shape[1]) < self._ends[:, None]).reshape(*table.shape, size)
        self._scored = self._ends > check.index_topk  # a shorter context is taken whole, unscored
        self._scored_rows: list[int] = np.flatnonzero(self._scored).tolist()
        self.taint = np.zeros(len(readers), np.int32)  # 0, or the bad read that a member's new rows stem from
        self._member_of_token, positions = layout.member_of_token, layout.positions
        self.token_slots: Ints = table[self._member_of_token, positions // size] * size + positions % size
        self.token_prefix: Words = prefix[self._member_of_token, positions]
        for row, reader in enumerate(readers):
            # The device row, and its pages, may be another request's by mistake: the client's prompt decides.
            words = reader.prompt_words[ahead : ahead + prefix.shape[1]]
            prefix[row, : len(words)] = words
        self._expected: Words = prefix.reshape(*table.shape, size)
        self._own_rows: Words = prefix[self._member_of_token, positions]
        self._continued = self._continues(check.last.get(ahead))
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
        for row in self._scored_rows:
            recorder.access(self._access(False, "index", layer, self._context_sets[row], self._requests[row]))
        if self._scored_rows:
            self._verify(recorder, "index", layer, lambda: self._in_context & self._scored[:, None, None])

    def latents(self, recorder: Recorder, layer: int, slots: Ints | None, counts: Ints | None) -> None:
        """Check the latents that attention gathers: `slots` (tokens, topk), of which `counts` are real.

        Without slots (numerics = "stamps") the whole context counts as gathered.
        """
        if slots is None or counts is None:
            for pages, request in zip(self._context_sets, self._requests, strict=True):
                recorder.access(self._access(False, "latent", layer, pages, request))
            self._verify(recorder, "latent", layer, lambda: self._in_context)
            return
        gathered = self._places(slots, counts)
        touched = np.zeros(self._table.shape, bool)
        touched.reshape(-1)[gathered // self._check.pool.page_tokens] = True
        for row, request in enumerate(self._requests):
            places = np.flatnonzero(touched[row])
            if len(places):
                whole = len(places) == self._context_pages[row]
                pages = self._context_sets[row] if whole else self._set(row, places)
                recorder.access(self._access(False, "latent", layer, pages, request))
        self._verify(recorder, "latent", layer, lambda: self._flags(gathered))

    def _places(self, slots: Ints, counts: Ints) -> Ints:
        """Return where these slots, (tokens, topk), are in the members' contexts, as flat places."""
        _, pages, size = self._expected.shape
        page, offset = np.divmod(slots, size)
        member = self._member_of_token[:, None]
        places: Ints = (member * pages + self._place_of_page[member, page]) * size + offset
        if counts.min() < slots.shape[1]:
            return places[np.arange(slots.shape[1]) < counts[:, None]]
        return places

    def _flags(self, places: Ints) -> Flags:
        read = np.zeros(self._expected.shape, bool)
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

    def _continues(self, before: "StepReads | None") -> int:
        """Return the number of the step before, if this one has the same members and their contexts, longer; else 0."""
        if before is None or before._requests != self._requests or before._scored_rows != self._scored_rows:
            return 0
        pages = min(self._table.shape[1], before._table.shape[1])
        known = before._in_context[:, :pages]
        same = (self._table[:, :pages] == before._table[:, :pages])[..., None]
        same = same & (self._expected[:, :pages] == before._expected[:, :pages])
        is_whole = not before._in_context[:, pages:].any()
        return before._step if is_whole and not (known & ~same).any() else 0

    def _verify(self, recorder: Recorder, component: Component, layer: int, read: Callable[[], Flags]) -> None:
        """Compare the stamps of the rows that are `read` with those that are expected."""
        check, (pool, place) = self._check, self._check.homes[layer]
        what, writes = _Read(component, layer, self._ahead), pool.writes(component, place)
        known = check.right.pop(what, None)
        if known is not None and self._only_adds_to(known, pool, place, what, writes):
            self.taint = np.where(self.taint, self.taint, known.origins)
            check.right[what] = known._replace(step=self._step, writes=writes)
            return
        origins = self._compare(recorder, component, layer, read())
        if origins is not None and not pool.checksums:
            check.right[what] = _Checked(self._step, writes, origins)

    def _only_adds_to(self, known: _Checked, pool: KVPool, place: int, what: _Read, writes: int) -> bool:
        """Return whether nothing but right rows of this step's own has come to what is known."""
        if (known.step, known.writes) != (self._continued, writes - 1):
            return False
        taint = pool.taint_of(what.component, place).reshape(-1)[self.token_slots] if pool.tainted else 0
        if np.any(taint != 0) and np.any(taint != known.origins[self._member_of_token]):
            return False
        found = pool.stamps_of(what.component, place).reshape(-1)[self.token_slots]
        return bool((found ^ self._own_rows == salt(what.component, what.layer)).all())

    def _compare(self, recorder: Recorder, component: Component, layer: int, read: Flags) -> NDArray[np.int32] | None:
        """Report what is wrong among the rows that are `read`.

        Returns the origins of the members' taint, (members,), 0 for none; None unless their whole contexts are right
        and, where tainted, read.
        """
        pool, place = self._check.homes[layer]
        found = pool.stamps_at(component, place, self._table, read)
        differs = ((found ^ self._expected) != salt(component, layer)) & self._in_context
        wrong = differs & read
        is_right = not differs.any()
        if not is_right:
            for row in np.flatnonzero(wrong.any(axis=(1, 2))):
                self._report(recorder, component, layer, int(row), wrong[row], 0)
        origins = np.zeros(len(self._requests), np.int32)
        if pool.tainted:
            tainted = np.where(self._in_context, pool.taint_of(component, place)[self._table], 0)
            taint = np.where(read & ~wrong, tainted, 0)
            is_right = is_right and np.array_equal(taint, tainted)
            for row in np.flatnonzero(taint.any(axis=(1, 2))):
                origins[row] = taint[row][taint[row] != 0].min()
                self._report(recorder, component, layer, int(row), taint[row] == origins[row], int(origins[row]))
        return origins if is_right else None

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
