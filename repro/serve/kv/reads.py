"""What a step read, and whether it was what it should have read.

Each read gathers the stamps with the bytes and compares them with the request's own prefix hashes.
A first-hand wrong read marks the request's rows of this step as tainted: what it stores from then on
stems from wrong bytes, and whoever reads those rows later is told the origin.
"""

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from repro.base.probe import Access, BadRead, Component, Probes
from repro.serve.device.base import Device, Recorder
from repro.serve.kv.pool import Home, KVPool, Names
from repro.serve.kv.stamps import Words, salt
from repro.serve.sched.batch import Batch, Ints, Layout, Member

Flags = NDArray[np.bool_]


class ReadCheck:
    """Makes the checks of each step."""

    def __init__(self, device: Device, homes: tuple[Home, ...], names: Names, probes: Probes, index_topk: int) -> None:
        self.device = device
        self.homes = homes
        self.pool: KVPool = homes[0].pool  # whose pages all homes have
        self.names = names
        self.probes = probes
        self.index_topk = index_topk
        self.told: dict[tuple[str, int], None] = {}  # (request, origin) pairs already reported

    def planned(self, batch: Batch) -> tuple[int, int]:
        """Return the page sets that a batch will write and read, as the host knows its block tables now."""
        size = self.pool.page_tokens
        stored, context = [], []
        for member in batch.members:
            end = (member.end - 1) // size + 1
            context.append(member.request.pages[:end])
            stored.append(member.request.pages[member.first // size : end])
        both = (np.unique(np.concatenate(pages)).astype(np.int32) for pages in (stored, context))
        written, read = (self.names.page_sets.intern(pages) for pages in both)
        return written, read

    def step(
        self, members: tuple[Member, ...], layout: Layout, table: Ints, prefix: Words, ahead: int = 0
    ) -> "StepReads":
        """Return the checks of a step with these block tables, (members, pages), and prefix hashes of their
        tokens as the device has them; `prefix` is the step's from now on.

        A row of the draft layer depends on one token more than its position has: there `ahead` is 1, and
        `prefix` begins with the hash up to position 1.
        """
        return StepReads(self, members, layout, table, prefix, ahead)


class StepReads:
    """The reads and stores of one step, per member, against the pages of its block table."""

    def __init__(
        self,
        check: ReadCheck,
        members: tuple[Member, ...],
        layout: Layout,
        table: Ints,
        prefix: Words,
        ahead: int,
    ) -> None:
        self._check = check
        self._members = members
        self._table = table
        _, pages = table.shape
        size = check.pool.page_tokens
        self._ends = layout.ends
        self._in_context = (np.arange(pages * size) < self._ends[:, None]).reshape(len(members), pages, size)
        self._scored = self._ends > check.index_topk  # a shorter context is taken whole, unscored
        self.taint = np.zeros(len(members), np.int32)  # 0, or the bad read that what is stored stems from
        self._member_of_token, positions = layout.member_of_token, layout.positions
        self.token_slots: Ints = table[self._member_of_token, positions // size] * size + positions % size
        self.token_prefix: Words = prefix[self._member_of_token, positions]
        for row, member in enumerate(members):
            # A device row can be another request's, and its pages with it: the prompt is what was asked.
            words = member.request.prompt_words[ahead : ahead + pages * size]
            prefix[row, : len(words)] = words
        self._expected = prefix.reshape(len(members), pages, size)
        stops = ((self._ends - 1) // size + 1).tolist()
        self._context_sets = [self._set(row, slice(stop)) for row, stop in enumerate(stops)]
        starts = (layout.firsts // size).tolist()
        self._store_sets = [self._set(row, slice(starts[row], stops[row])) for row in range(len(members))]

    def token_taint(self) -> NDArray[np.int32]:
        """Return each token's taint as of now."""
        return self.taint[self._member_of_token]

    def token_stamps(self, component: Component, layer: int) -> Words:
        """Return what each token's row is stamped with."""
        return self.token_prefix ^ salt(component, layer)

    def record_store(self, recorder: Recorder, component: Component, layer: int) -> None:
        """Note the pages that this layer's store wrote."""
        for row, member in enumerate(self._members):
            pages = self._store_sets[row]
            recorder.access(self._access(True, component, layer, pages, member.request.id))

    def index(self, recorder: Recorder, layer: int) -> None:
        """Check the index keys that the indexer scores: the whole context of each scored member."""
        for row in np.flatnonzero(self._scored):
            request = self._members[row].request.id
            recorder.access(self._access(False, "index", layer, self._context_sets[row], request))
        self._verify(recorder, "index", layer, self._in_context & self._scored[:, None, None])

    def latents(self, recorder: Recorder, layer: int, slots: Ints | None, counts: Ints | None) -> None:
        """Check the latents that attention gathers: `slots` (tokens, topk), of which `counts` are real.

        Without slots (numerics = "stamps") the whole context counts as gathered.
        """
        read = self._in_context if slots is None or counts is None else self._gathered(slots, counts)
        touched: Flags = np.any(read, axis=2)
        for row, member in enumerate(self._members):
            places = np.flatnonzero(touched[row])
            if len(places):
                pages = self._set(row, places)
                recorder.access(self._access(False, "latent", layer, pages, member.request.id))
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
        # What a row's former owner left behind the context goes to a column of its own.
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
        check, request = self._check, self._members[row].request.id
        if origin:
            self.taint[row] = self.taint[row] or origin
            if (request, origin) in check.told:
                return
        bad_read = check.names.bad_read()
        self.taint[row] = origin or self.taint[row] or bad_read
        check.told[request, origin or bad_read] = None
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
