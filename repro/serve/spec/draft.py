"""A pass of the draft layer: it stores rows and proposes a token for each member.

Row i comes from a hidden row at i and the token behind it, and proposes the token after that:

    hidden row    i ─┐
    token     i + 1 ─┴─> draft row i ──> draft at i + 2

The pass that ends a step takes the model's own hidden rows, of whatever stands after the step: so every
row that is kept is what it would be without speculation. A pass that chains takes the last draft's, and
stores its row behind the standing ones, where the pass that ends the step overwrites it or it is never read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from repro.base.lazy import torch
from repro.base.probe import Component
from repro.serve.device.base import Commit, Recorder
from repro.serve.kv.layout import Ints, Layout
from repro.serve.kv.reads import ReadCheck
from repro.serve.kv.stamps import Words, mix
from repro.serve.memory import Memory
from repro.serve.model.context import Context, Projected, Selected
from repro.serve.model.mtp import draft_hidden, draft_input
from repro.serve.sched.batch import Batch, Member
from repro.serve.sched.sampling import sample_stamps
from repro.serve.spec.verify import windows

WRONG_STAMP_DRAFTS = 8  # numerics = "stamps": one draft of so many is wrong


@dataclass(frozen=True)
class DraftRows:
    """What a pass stores: rows at these places, from these hidden rows."""

    members: tuple[Member, ...]
    layout: Layout
    hidden: torch.Tensor | None  # (tokens, hidden) behind a final norm; None under numerics = "stamps"
    taint: NDArray[np.int32]  # (members,): the bad read that the hidden rows stem from

    @cached_property
    def rows(self) -> Ints:
        """Return each member's request row, (members,)."""
        return np.array([member.row for member in self.members], np.int64)


Source = Callable[[], DraftRows | None]


def chained(batch: Batch, memory: Memory, number: int) -> Source:
    """Return the source of the pass that makes draft `number` + 1 of each window that has room for it."""

    def source() -> DraftRows | None:
        long = windows(memory.rows, batch.rows, batch.drafts).counts > number + 1
        if not long.any():
            return None
        members = tuple(member for member, chosen in zip(batch.members, long.tolist(), strict=True) if chosen)
        rows = batch.rows[long]
        count = len(members)
        layout = Layout(memory.rows.length[rows] + number - 1, np.ones(count, np.int64))
        hidden = None if memory.model is None else torch.from_numpy(memory.rows.draft_hidden[rows])
        return DraftRows(members, layout, hidden, np.zeros(count, np.int32))

    return source


class DraftPass:
    """The bodies of one pass and the temporaries that flow between them; nothing when there are no rows."""

    def __init__(self, memory: Memory, check: ReadCheck, source: Source) -> None:
        self.layer = memory.pool.layers - 1
        self._memory = memory
        self._check = check
        self._source = source
        self._stored: DraftRows | None = None
        self._hidden: torch.Tensor | None = None
        self._context: Context | None = None
        self._projected: Projected | None = None
        self._selected: Selected | None = None

    def store(self, recorder: Recorder) -> Commit | None:
        """Combine hidden rows and next tokens, project them, and write the draft layer's rows."""
        self._stored = stored = self._source()
        if stored is None:
            return None
        memory, layout = self._memory, stored.layout
        pool, device_rows = memory.pool, memory.rows
        device_rows.record_read(recorder, [(member.row, member.request.id) for member in stored.members])
        pages = int(layout.ends.max() - 1) // pool.page_tokens + 1
        table = device_rows.table[stored.rows, :pages]
        prefix = device_rows.prefix[stored.rows, 1 : pages * pool.page_tokens + 1]
        readers = [member.request for member in stored.members]
        self._reads = reads = self._check.step(readers, layout, table, prefix, ahead=1)
        reads.taint[:] = stored.taint
        values = self._project(stored, table)

        def commit() -> None:
            for component, rows in values.items():
                stamps = reads.token_stamps(component, self.layer)
                pool.write_slots(component, self.layer, reads.token_slots, rows, stamps, reads.token_taint())
                reads.record_store(recorder, component, self.layer)

        return commit

    def _project(self, stored: DraftRows, table: Ints) -> dict[Component, torch.Tensor | None]:
        """Return the cache rows to write; None of each under numerics = "stamps"."""
        memory, layout, model = self._memory, stored.layout, self._memory.model
        if model is None:
            return {"latent": None, "index": None}
        assert stored.hidden is not None
        next_tokens = memory.rows.tokens[stored.rows[layout.member_of_token], layout.positions + 1]
        positions = torch.from_numpy(layout.positions)
        rows = draft_input(model, stored.hidden, torch.from_numpy(next_tokens))
        self._projected = model.project(self.layer, rows, positions)
        self._context = model.context(
            torch.from_numpy(table),
            torch.from_numpy(layout.member_of_token),
            positions,
            page_size=memory.pool.page_tokens,
        )
        return {"latent": self._projected.latent, "index": self._projected.index_key}

    def index(self, recorder: Recorder) -> None:
        """Score the draft layer's index keys and select the positions to attend to."""
        if self._stored is None:
            return
        self._reads.index(recorder, self.layer)
        if (model := self._memory.model) is not None:
            assert self._projected is not None and self._context is not None
            keys = self._memory.pool.flat("index", self.layer)
            self._selected = model.select(self.layer, self._projected, keys, self._context)

    def attend(self, recorder: Recorder) -> None:
        """Gather the selected latents of the draft layer and attend."""
        if self._stored is None:
            return
        if (model := self._memory.model) is None:
            self._reads.latents(recorder, self.layer, None, None)
            return
        assert self._projected is not None and self._selected is not None
        self._reads.latents(recorder, self.layer, self._selected.slots.numpy(), self._selected.counts.numpy())
        latents = self._memory.pool.flat("latent", self.layer)
        self._hidden = model.attend(self.layer, self._projected, latents, self._selected)

    def propose(self, recorder: Recorder) -> Commit | None:
        """Write the likeliest token behind each sampling member's last row into its request row, as a draft."""
        stored, memory = self._stored, self._memory
        if stored is None or not (samples := np.array([member.samples for member in stored.members])).any():
            return None
        rows, places = stored.rows[samples], stored.layout.last_tokens[samples]
        positions = stored.layout.positions[places]
        memory.rows.record_write(recorder, rows)
        hidden: torch.Tensor | None = None
        if (model := memory.model) is None:
            tokens = draft_stamps(memory.rows.prefix[rows, positions + 1], memory.vocabulary)
        else:
            assert self._hidden is not None
            hidden = draft_hidden(model, model.feed_forward(self.layer, self._hidden[torch.from_numpy(places)]))
            tokens = model.head(hidden).argmax(dim=-1).numpy()

        def commit() -> None:
            memory.rows.put(rows, positions + 2, tokens)
            if hidden is not None:
                memory.rows.draft_hidden[rows] = hidden.numpy()
            self._hidden = self._context = self._projected = self._selected = None

        return commit


def draft_stamps(prefix: Words, vocabulary: int) -> Ints:
    """Return drafts that are a function of the prefix alone, for numerics = "stamps"; a share is wrong."""
    wrong = mix(mix(prefix)) % np.uint64(WRONG_STAMP_DRAFTS) == 0
    drafts: Ints = (sample_stamps(prefix, vocabulary).tokens + wrong) % vocabulary
    return drafts
