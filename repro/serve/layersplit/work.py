"""The bodies of one rank's operations in one step.

    upload, embed, [ project, gather, store index, index, store latent, attend, feed forward ] per layer,
    sample, gather, take, download

A rank computes its part of the tokens; new rows and chosen tokens are gathered, so that all ranks have them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from repro.base.lazy import torch
from repro.base.probe import Component
from repro.serve.device.base import Commit, Event, Recorder
from repro.serve.kv.layout import Ints, Layout
from repro.serve.kv.pool import COMPONENTS
from repro.serve.kv.reads import ReadCheck, StepReads
from repro.serve.kv.stamps import Words, salt
from repro.serve.layersplit.collective import Payload
from repro.serve.layersplit.sequence import part_of
from repro.serve.memory import Memory
from repro.serve.model.context import Context, Projected, Selected
from repro.serve.sched.batch import Batch
from repro.serve.sched.sampling import Chosen, Sampled, sample, sample_stamps

SENT_AS: Component = "latent"  # new rows travel with this component's stamps, for all components


@dataclass(frozen=True)
class NewRows:
    """The cache rows of all tokens of a step in one layer, in the tokens' order."""

    stamps: Words  # the stamps of their latents
    taint: NDArray[np.int32]
    values: dict[Component, torch.Tensor] | None  # None under numerics = "stamps"


class RankWork:
    """One step on one rank (`worker.Work`), and the temporaries that flow between its operations."""

    def __init__(self, batch: Batch, memory: Memory, check: ReadCheck, done: Event, rank: int, ranks: int) -> None:
        self.batch = batch
        self.done = done
        self.result: Chosen | None = None
        self.part = part_of(batch, rank, ranks)
        self.memory = memory
        self._check = check
        self._alternatives = max((member.request.sampling.top_logprobs for member in batch.sampling_members), default=0)
        self._hidden: torch.Tensor | None = None
        self._context: Context | None = None
        self._projected: Projected | None = None
        self._selected: Selected | None = None
        self._sampled: Sampled | None = None
        self._stamps: Words | None = None  # stamps of the rows that this rank has projected last
        self._new: NewRows | None = None

    async def finished(self) -> None:
        """Wait on the host until the samples are there."""
        await self.done.synchronize("the step's samples are on the host")

    # -- before the layers ------------------------------------------------------------------------------

    def upload(self, recorder: Recorder) -> Commit:
        """Copy the staging buffer into the request rows."""
        staging, rows = self.batch.staging, self.memory.rows
        return lambda: staging.write_to(rows)

    def embed(self, recorder: Recorder) -> Commit:
        """Take the input tokens of this rank's part, and lay out the whole batch."""
        batch, memory, layout = self.batch, self.memory, self.batch.layout()
        rows = batch.rows[layout.member_of_token]
        self._embed_part()

        def commit() -> None:
            if not batch.prefill:
                memory.rows.append(rows, layout.positions)
            self._all_reads = self._reads(batch, layout)
            if self.part.members:
                self._part_reads = self._reads(self.part, self.part.layout())

        return commit

    def _embed_part(self) -> None:
        part, memory = self.part, self.memory
        if not part.members or memory.model is None:
            return
        layout = part.layout()
        rows = part.rows[layout.member_of_token]
        tokens = memory.rows.tokens[rows, layout.positions] if part.prefill else memory.rows.next_token[rows]
        self._positions = torch.from_numpy(layout.positions)
        self._hidden = memory.model.embed(torch.from_numpy(tokens))
        self._context = memory.model.context(
            torch.from_numpy(self._table(part, layout)),
            torch.from_numpy(layout.member_of_token),
            self._positions,
            page_size=memory.pool.page_tokens,
        )

    def _table(self, batch: Batch, layout: Layout) -> Ints:
        pages = int(layout.ends.max() - 1) // self.memory.pool.page_tokens + 1
        return self.memory.rows.table[batch.rows, :pages]

    def _reads(self, batch: Batch, layout: Layout) -> StepReads:
        table = self._table(batch, layout)
        prefix = self.memory.rows.prefix[batch.rows, : table.shape[1] * self.memory.pool.page_tokens]
        return self._check.step(batch.readers, layout, table, prefix)

    # -- new rows ---------------------------------------------------------------------------------------

    def project(self, layer: int, recorder: Recorder) -> Commit | None:
        """Project the hidden states of this rank's part; the new rows are stamped as of this layer."""
        if not self.part.members:
            return None
        projected = None
        if (model := self.memory.model) is not None:
            assert self._hidden is not None
            projected = model.project(layer, self._hidden, self._positions)
        stamps = self._part_reads.token_stamps(SENT_AS, layer)

        def commit() -> None:
            self._projected, self._stamps = projected, stamps

        return commit

    def send_rows(self, recorder: Recorder) -> Payload:
        """Return the new rows of this rank's part: stamps, taint, and the rows of each component."""
        model = self.memory.model
        if not self.part.members:
            stamped = (torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int32))
            if model is None:
                return stamped
            return (*stamped, torch.empty(0, model.config.latent_width), torch.empty(0, model.config.index_head_dim))
        assert self._stamps is not None, "new rows are sent before any were computed"
        stamped = (torch.from_numpy(self._stamps.view(np.int64)), torch.from_numpy(self._part_reads.token_taint()))
        if model is None:
            return stamped
        assert self._projected is not None
        return (*stamped, self._projected.latent, self._projected.index_key)

    def take_rows(self, recorder: Recorder, sent: Sequence[Payload]) -> Commit:
        """Put the new rows of all ranks together."""
        stamps, taint, *values = (torch.cat(each) for each in zip(*sent, strict=True))
        rows = dict(zip(COMPONENTS, values, strict=True)) if values else None

        def commit() -> None:
            self._new = NewRows(stamps.numpy().view(np.uint64), taint.numpy(), rows)

        return commit

    def store(self, layer: int, component: Component, recorder: Recorder) -> Commit:
        """Write the gathered rows of a component to where this rank has the layer."""
        new, home = self._new, self.memory.homes[layer]
        assert new is not None
        values = None if new.values is None else new.values[component]

        def commit() -> None:
            stamps = new.stamps ^ salt(SENT_AS, layer) ^ salt(component, layer)
            home.pool.write_slots(component, home.layer, self._all_reads.token_slots, values, stamps, new.taint)
            self._all_reads.record_store(recorder, component, layer)

        return commit

    # -- a layer ----------------------------------------------------------------------------------------

    def index(self, layer: int, recorder: Recorder) -> None:
        """Score the cached index keys for this rank's part."""
        if not self.part.members:
            return
        self._part_reads.index(recorder, layer)
        if (model := self.memory.model) is not None:
            assert self._projected is not None and self._context is not None
            home = self.memory.homes[layer]
            self._selected = model.select(layer, self._projected, home.pool.flat("index", home.layer), self._context)

    def attend(self, layer: int, recorder: Recorder) -> None:
        """Gather the selected latents and attend."""
        if not self.part.members:
            return
        if (model := self.memory.model) is None:
            self._part_reads.latents(recorder, layer, None, None)
            return
        assert self._projected is not None and self._selected is not None
        self._part_reads.latents(recorder, layer, self._selected.slots.numpy(), self._selected.counts.numpy())
        home = self.memory.homes[layer]
        self._hidden = model.attend(layer, self._projected, home.pool.flat("latent", home.layer), self._selected)

    def feed_forward(self, layer: int, recorder: Recorder) -> None:
        """Run the experts."""
        if (model := self.memory.model) is not None and self.part.members:
            assert self._hidden is not None
            self._hidden = model.feed_forward(layer, self._hidden)

    # -- behind the layers ------------------------------------------------------------------------------

    def sample(self, recorder: Recorder) -> None:
        """Choose the next token of each member that has its last token on this rank."""
        members = self.part.sampling_members
        if not members:
            return
        layout, memory = self.part.layout(), self.memory
        places = layout.last_tokens[np.array([member.samples for member in self.part.members])]
        if memory.model is None:
            self._sampled = sample_stamps(self._part_reads.token_prefix[places], memory.vocabulary)
            return
        assert self._hidden is not None
        logits = memory.model.logits(self._hidden[torch.from_numpy(places)])
        rows = zip((member.request.sampling for member in members), (member.end for member in members), strict=True)
        self._sampled = sample(logits, list(rows))

    def send_tokens(self, recorder: Recorder) -> Payload:
        """Return the tokens that this rank has chosen, with log-probabilities and alternatives."""
        count = len(self.part.sampling_members)
        top_ids = torch.zeros(count, self._alternatives, dtype=torch.int64)
        top_logprobs = torch.zeros(count, self._alternatives)
        if not count:
            return torch.zeros(0, dtype=torch.int64), torch.zeros(0), top_ids, top_logprobs
        assert self._sampled is not None, "tokens are sent before any were chosen"
        for row, top in enumerate(self._sampled.top):
            for place, (token, logprob) in enumerate(top):
                top_ids[row, place], top_logprobs[row, place] = token, logprob
        return torch.from_numpy(self._sampled.tokens), torch.from_numpy(self._sampled.logprobs), top_ids, top_logprobs

    def take_tokens(self, recorder: Recorder, sent: Sequence[Payload]) -> Commit:
        """Put the tokens of all ranks together, and into the rows."""
        tokens, logprobs, top_ids, top_logprobs = (torch.cat(each) for each in zip(*sent, strict=True))
        top = []
        for row, member in enumerate(self.batch.sampling_members):
            wanted = member.request.sampling.top_logprobs
            top.append(tuple(zip(top_ids[row, :wanted].tolist(), top_logprobs[row, :wanted].tolist(), strict=True)))
        count = len(top)
        sampled = Sampled(tokens.numpy(), logprobs.numpy(), tuple(top))
        samples = np.array([member.samples for member in self.batch.members])

        def commit() -> None:
            self._sampled = sampled
            self.memory.rows.next_token[self.batch.rows[samples]] = sampled.tokens
            if count:
                self._chosen = Chosen(sampled, np.arange(count), np.ones(count, np.int64))

        return commit

    def download(self, recorder: Recorder) -> Commit:
        """Copy the chosen tokens into host memory."""

        def commit() -> None:
            self.result = self._chosen if self.batch.sampling_members else None
            self._hidden = self._context = self._projected = self._selected = self._new = None

        return commit
