"""One step on the device: the operations of a batch, in the order they are enqueued.

    upload, embed, [ store, index, attend, feed forward ] per layer, sample, download

With speculation, where a pass of the draft layer is [ store, index, attend, propose ]:

    upload, further drafts, embed, [ ... ] per layer, sample, pass over what stands, download

`Forward.launch` is host code: it calls the guards and enqueues. Everything in `StepWork` runs later,
when the compute stream comes to it, and reads the pools as they are then.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from repro.base.lazy import torch
from repro.base.probe import Access, Component
from repro.serve.device.base import Commit, Device, Event, Recorder, Stream
from repro.serve.device.cost import CostModel
from repro.serve.guards import Guards
from repro.serve.guards.waits import LayerLoads
from repro.serve.kv.layout import Ints, Layout
from repro.serve.kv.pool import COMPONENTS
from repro.serve.kv.reads import ReadCheck
from repro.serve.launches import Launches
from repro.serve.memory import Memory
from repro.serve.model.context import Context, Projected, Selected
from repro.serve.sched.batch import Batch
from repro.serve.sched.sampling import Chosen, Sampled, sample, sample_stamps, score
from repro.serve.spec.draft import DraftPass, DraftRows, Source, chained
from repro.serve.spec.verify import standing_tokens, windows
from repro.serve.types import PromptScore


def _no_host_code(compute: Stream, loads: LayerLoads | None, layer: int) -> None:
    """A captured graph is replayed: what was host code between its kernels does not run."""


class Forward(Launches):
    """Enqueues steps on the compute stream."""

    def __init__(
        self,
        device: Device,
        compute: Stream,
        upload: Stream,
        memory: Memory,
        check: ReadCheck,
        guards: Guards,
        cost: CostModel,
        speculative: bool,
    ) -> None:
        super().__init__(device, compute, cost)
        self._memory = memory
        self._check = check
        self._guards = guards
        self._replayed = guards.replaced(
            before_index_store=_no_host_code,
            before_index_read=_no_host_code,
            before_latent_read=_no_host_code,
            before_draft_read=_no_host_code,
        )
        self._speculative = speculative
        self._layers = memory.pool.layers - speculative
        self._upload = upload
        self._last_use: dict[int, tuple[int, Event]] = {}  # row -> the last step enqueued, and the event behind it

    def launch(self, batch: Batch) -> StepWork:
        """Enqueue a whole step and return it; its `done` event is behind the download."""
        done = self._device.event(f"step{batch.number}")
        work = StepWork(batch, self._memory, self._check, done, self._speculative)
        self._device.charge(self._cost.prepare_us)
        tokens, prefill, cost = batch.num_tokens, batch.prefill, self._cost
        self._put_upload(work)
        guards = self._between_kernels(batch)
        stored, context = self._named_pages(batch)
        for number in range(1, batch.drafts):
            source = chained(batch, self._memory, number)
            keys = batch.token_keys // (1 + batch.drafts)
            self._draft(batch, guards, source, stored, context, len(batch.members), keys)
        self._put("forward.embed", work.embed, batch, cost.embed_us(tokens), declared=self._rows(batch))
        for layer in range(self._layers):
            guards.waits.before_index_store(self._compute, batch.loads, layer)
            stores = self._stores(layer, stored)
            self._put("forward.store", work.at(layer).store, batch, cost.store_us(tokens, prefill), layer, stores)
            guards.waits.before_index_read(self._compute, batch.loads, layer)
            scores = (Access(False, self._memory.pool.tier, "index", layer, context, ""),)
            duration_us = cost.index_us(batch.token_keys, prefill)
            self._put("forward.index", work.at(layer).index, batch, duration_us, layer, scores)
            guards.waits.before_latent_read(self._compute, batch.loads, layer)
            gathers = (Access(False, self._memory.pool.tier, "latent", layer, context, ""),)
            self._put("forward.attend", work.at(layer).attend, batch, cost.attend_us(tokens, prefill), layer, gathers)
            duration_us = cost.feed_forward_us(tokens, prefill)
            self._put("forward.feed_forward", work.at(layer).feed_forward, batch, duration_us, layer)
        sampled = tokens if batch.drafts else len(batch.members) + batch.num_scored
        tail_us = cost.tail_us(sampled, tokens, batch.token_keys, prefill, self._layers)
        self._put("forward.sample", work.sample, batch, tail_us, declared=self._rows(batch))
        if self._speculative:
            self._draft(batch, guards, work.standing, stored, context, tokens, batch.token_keys)
        self._put("forward.download", work.download, batch, cost.embed_us(tokens))
        work.done.record(self._compute)
        self._last_use.update(dict.fromkeys(batch.rows.tolist(), (batch.number, work.done)))
        return work

    def _put_upload(self, work: StepWork) -> None:
        """Enqueue the upload of a step's rows, behind the last step that used them, and let the step wait for it."""
        batch, staging = work.batch, work.batch.staging
        used = [self._last_use[row] for row in staging.rows.tolist() if row in self._last_use]
        if used:
            _, last_use = max(used, key=lambda step: step[0])
            self._guards.waits.before_row_reuse(self._upload, last_use)
        declared = self._memory.rows.touched(staging.rows, write=True)
        duration_us = self._cost.embed_us(batch.num_tokens)
        self._put("forward.upload", work.upload, batch, duration_us, declared=declared, stream=self._upload)
        staging.uploaded.record(self._upload)
        self._guards.waits.before_row_read(self._compute, staging.uploaded)

    def _named_pages(self, batch: Batch) -> tuple[int, int]:
        """Return the page sets that a batch will write and read."""
        size, sets = self._memory.pool.page_tokens, self._check.names.page_sets
        stored, context = batch.stored_pages(size), batch.context_pages(size)
        return sets.intern(stored), sets.intern(context)

    def _rows(self, batch: Batch) -> tuple[Access, ...]:
        """Return what a step may do to its members' rows."""
        rows = self._memory.rows
        return rows.touched(batch.rows, write=False) + rows.touched(batch.rows, write=True)

    def _between_kernels(self, batch: Batch) -> Guards:
        """Return the guards of a step's layers, none where a graph is replayed: there all is awaited before it."""
        if not batch.replays:
            return self._guards
        self._guards.waits.before_graph_replay(self._compute, batch.loads)
        return self._replayed

    def _draft(
        self, batch: Batch, guards: Guards, source: Source, stored: int, context: int, tokens: int, token_keys: int
    ) -> None:
        """Enqueue a pass of the draft layer over at most so many tokens."""
        work = DraftPass(self._memory, self._check, source)
        layer, prefill, cost = work.layer, batch.prefill, self._cost
        guards.waits.before_index_store(self._compute, batch.loads, layer)
        stores = self._stores(layer, stored) + self._rows(batch)
        self._put("spec.store", work.store, batch, cost.store_us(tokens, prefill), layer, stores)
        guards.waits.before_draft_read(self._compute, batch.loads, layer)
        scores = (Access(False, self._memory.pool.tier, "index", layer, context, ""),)
        self._put("spec.index", work.index, batch, cost.index_us(token_keys, prefill), layer, scores)
        gathers = (Access(False, self._memory.pool.tier, "latent", layer, context, ""),)
        self._put("spec.attend", work.attend, batch, cost.attend_us(tokens, prefill), layer, gathers)
        propose_us, proposed = cost.propose_us(len(batch.members)), self._rows(batch)
        self._put("spec.propose", work.propose, batch, propose_us, layer, proposed)

    def _stores(self, layer: int, pages: int) -> tuple[Access, ...]:
        return tuple(Access(True, self._memory.pool.tier, component, layer, pages, "") for component in COMPONENTS)


class StepWork:
    """The bodies of one step's operations and the temporaries that flow between them."""

    def __init__(self, batch: Batch, memory: Memory, check: ReadCheck, done: Event, speculative: bool) -> None:
        self.batch = batch
        self.done = done
        self.result: Chosen | None = None  # host memory, written by the download
        self._memory = memory
        self._check = check
        self._speculative = speculative
        self._hidden: torch.Tensor | None = None
        self._context: Context | None = None
        self._projected: Projected | None = None
        self._selected: Selected | None = None
        self._chosen: Chosen | None = None

    async def finished(self) -> None:
        """Wait on the host until the samples are there."""
        await self.done.synchronize("the step's samples are on the host")

    def at(self, layer: int) -> LayerWork:
        """Return the bodies of one layer's operations."""
        return LayerWork(self, layer)

    def upload(self, recorder: Recorder) -> Commit:
        """Copy the staging buffer, as it is when this runs, into the request rows."""
        staging, rows = self.batch.staging, self._memory.rows
        rows.record_write(recorder, staging.rows)
        return lambda: staging.write_to(rows)

    def embed(self, recorder: Recorder) -> Commit:
        """Take the input tokens, prompt, future-token slots or windows, and lay out the batch."""
        batch, memory = self.batch, self._memory
        layout = windows(memory.rows, batch.rows, batch.drafts) if batch.drafts else batch.layout()
        self._layout = layout
        rows = batch.rows[layout.member_of_token]
        takes_future = not (batch.prefill or self._speculative)
        self._inputs = memory.rows.next_token[rows] if takes_future else memory.rows.tokens[rows, layout.positions]
        memory.rows.record_read(recorder, [(member.row, member.request.id) for member in batch.members])
        if takes_future:
            memory.rows.record_write(recorder, batch.rows)
        pages = int(layout.ends.max() - 1) // memory.pool.page_tokens + 1
        table = memory.rows.table[batch.rows, :pages]
        if memory.model is not None:
            self.positions = torch.from_numpy(layout.positions)
            self._hidden = memory.model.embed(torch.from_numpy(self._inputs))
            self._context = memory.model.context(
                torch.from_numpy(table),
                torch.from_numpy(layout.member_of_token),
                self.positions,
                page_size=memory.pool.page_tokens,
            )

        def commit() -> None:
            if takes_future:
                memory.rows.append(rows, layout.positions)
            prefix = memory.rows.prefix[batch.rows, : pages * memory.pool.page_tokens]
            self.reads = self._check.step(batch.readers, layout, table, prefix)

        return commit

    def sample(self, recorder: Recorder) -> Commit:
        """Choose the next tokens: behind every token of a window, else where a prompt is complete."""
        batch, layout, memory = self.batch, self._layout, self._memory
        members = batch.sampling_members
        scored = self._scored() if batch.num_scored else {}
        if not members:
            nobody = np.zeros(0, np.int64)
            self._chosen = Chosen(Sampled(nobody, nobody.astype(np.float32), ()), nobody, nobody, scored)
            return lambda: None
        places = np.arange(len(layout.positions)) if batch.drafts else layout.last_tokens[self._samples]
        sampled = self._sampled(places)
        if batch.drafts:
            self._chosen = Chosen(sampled, layout.starts, standing_tokens(layout, self._inputs, sampled.tokens))
        else:
            self._chosen = Chosen(sampled, np.arange(len(members)), np.ones(len(members), np.int64), scored)
        chosen, rows = self._chosen, batch.rows[self._samples]
        last_tokens = sampled.tokens[chosen.starts + chosen.counts - 1]
        memory.rows.record_write(recorder, rows)

        def commit() -> None:
            if self._speculative:
                lengths = layout.firsts[self._samples] + chosen.counts if batch.drafts else layout.ends[self._samples]
                memory.rows.put(rows, lengths, last_tokens)
                memory.rows.length[rows] = lengths
            else:
                memory.rows.next_token[rows] = last_tokens

        return commit

    def _scored(self) -> dict[int, tuple[PromptScore, ...]]:
        """Return how likely the prompt's tokens are whose predecessors are in this step."""
        layout, memory = self._layout, self._memory
        scores = {}
        for number, member in enumerate(self.batch.members):
            if not member.scored:
                continue
            request, positions = member.request, member.scored
            tokens = request.wire.tokens[positions.start + 1 : positions.stop + 1]
            if memory.model is None:
                scores[number] = tuple(PromptScore(token, 0.0) for token in tokens)
                continue
            assert self._hidden is not None
            start = int(layout.starts[number]) - member.first
            hidden = self._hidden[start + positions.start : start + positions.stop]
            scores[number] = score(memory.model.logits(hidden), tokens, request.sampling.top_logprobs)
        return scores

    @property
    def _samples(self) -> NDArray[np.bool_]:
        return np.array([member.samples for member in self.batch.members])

    def _sampled(self, places: Ints) -> Sampled:
        """Return the tokens chosen behind these tokens of the batch."""
        layout, memory = self._layout, self._memory
        members, positions = layout.member_of_token[places], layout.positions[places]
        if memory.model is None:
            return sample_stamps(memory.rows.prefix[self.batch.rows[members], positions], memory.vocabulary)
        assert self._hidden is not None
        logits = memory.model.logits(self._hidden[torch.from_numpy(places)])
        params = [self.batch.members[member].request.sampling for member in members]
        return sample(logits, list(zip(params, (positions + 1).tolist(), strict=True)))

    def standing(self) -> DraftRows:
        """Return what the draft layer keeps of this step: the tokens that stand, with the model's hidden rows."""
        batch, layout, model = self.batch, self._layout, self._memory.model
        counts = layout.counts
        if batch.drafts:
            assert self._chosen is not None
            counts = self._chosen.counts
        stands = layout.positions < (layout.firsts + counts)[layout.member_of_token]
        hidden = None
        if model is not None:
            assert self._hidden is not None
            hidden = model.normed(self._hidden[torch.from_numpy(stands)])
        return DraftRows(batch.members, Layout(layout.firsts, counts), hidden, self.reads.taint)

    def download(self, recorder: Recorder) -> Commit:
        """Copy the samples into host memory; the host reads them behind `done`."""
        chosen = self._chosen

        def commit() -> None:
            self.result = chosen
            self._hidden = self._context = self._projected = self._selected = None

        return commit


@dataclass(frozen=True)
class LayerWork:
    """One layer of a step."""

    step: StepWork
    layer: int

    def store(self, recorder: Recorder) -> Commit:
        """Project the hidden states and write the new latents and index keys."""
        step, pool = self.step, self.step._memory.pool
        rows: dict[Component, torch.Tensor | None] = {"latent": None, "index": None}
        if (model := step._memory.model) is not None:
            assert step._hidden is not None
            step._projected = model.project(self.layer, step._hidden, step.positions)
            rows = {"latent": step._projected.latent, "index": step._projected.index_key}
        reads = step.reads

        def commit() -> None:
            for component, values in rows.items():
                stamps, taint = reads.token_stamps(component, self.layer), reads.token_taint()
                pool.write_slots(component, self.layer, reads.token_slots, values, stamps, taint)
                reads.record_store(recorder, component, self.layer)

        return commit

    def index(self, recorder: Recorder) -> None:
        """Score the cached index keys and select the positions to attend to."""
        step = self.step
        step.reads.index(recorder, self.layer)
        if (model := step._memory.model) is not None:
            assert step._projected is not None and step._context is not None
            keys = step._memory.pool.flat("index", self.layer)
            step._selected = model.select(self.layer, step._projected, keys, step._context)

    def attend(self, recorder: Recorder) -> None:
        """Gather the selected latents and attend."""
        step = self.step
        if (model := step._memory.model) is None:
            step.reads.latents(recorder, self.layer, None, None)
            return
        assert step._projected is not None and step._selected is not None
        step.reads.latents(recorder, self.layer, step._selected.slots.numpy(), step._selected.counts.numpy())
        latents = step._memory.pool.flat("latent", self.layer)
        step._hidden = model.attend(self.layer, step._projected, latents, step._selected)

    def feed_forward(self, recorder: Recorder) -> None:
        """Run the experts."""
        step = self.step
        if (model := step._memory.model) is not None:
            assert step._hidden is not None
            step._hidden = model.feed_forward(self.layer, step._hidden)
