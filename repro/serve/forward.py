"""One step on the device: the operations of a batch, in the order they are enqueued.

    upload, embed, [ store, index, attend, feed forward ] per layer, sample, download

`Forward.launch` is host code: it calls the guards and enqueues. Everything in `StepWork` runs later,
when the compute stream comes to it, and reads the pools as they are then.
"""

from dataclasses import dataclass

import numpy as np
import torch

from repro.base.probe import Access, Component
from repro.serve.device.base import Body, Commit, Device, Event, Recorder, Stream
from repro.serve.device.cost import CostModel
from repro.serve.guards import Guards
from repro.serve.kv.pool import COMPONENTS, KVPool
from repro.serve.kv.reads import ReadCheck
from repro.serve.model.context import Context
from repro.serve.model.glm5 import Glm5
from repro.serve.model.indexer import Selected
from repro.serve.model.projection import Projected
from repro.serve.sched.batch import Batch
from repro.serve.sched.rows import DeviceRows
from repro.serve.sched.sampling import Sampled, sample, sample_stamps


@dataclass(frozen=True)
class Memory:
    """The device memory that steps share."""

    pool: KVPool
    rows: DeviceRows
    model: Glm5 | None  # None under numerics = "stamps"
    vocabulary: int


class Forward:
    """Enqueues steps on the compute stream."""

    def __init__(
        self, device: Device, compute: Stream, memory: Memory, check: ReadCheck, guards: Guards, cost: CostModel
    ) -> None:
        self._device = device
        self._memory = memory
        self._check = check
        self._guards = guards
        self._cost = cost
        self.compute = compute

    def launch(self, batch: Batch) -> "StepWork":
        """Enqueue a whole step and return it; its `done` event is behind the download."""
        work = StepWork(batch, self._memory, self._check, self._device.event(f"step{batch.number}"))
        self._device.charge(self._cost.prepare_us)
        tokens, prefill, cost = batch.num_tokens, batch.prefill, self._cost
        self._put("forward.upload", work.upload, batch, cost.embed_us(tokens))
        batch.staging.uploaded.record(self.compute)
        self._put("forward.embed", work.embed, batch, cost.embed_us(tokens))
        stored, context = self._check.planned(batch)
        tier = self._memory.pool.tier
        for layer in range(self._memory.pool.layers):
            self._guards.before_index_store(self.compute, batch.loads, layer)
            stores = tuple(Access(True, tier, component, layer, stored, "") for component in COMPONENTS)
            self._put("forward.store", work.at(layer).store, batch, cost.store_us(tokens, prefill), layer, stores)
            self._guards.before_index_read(self.compute, batch.loads, layer)
            scores = (Access(False, tier, "index", layer, context, ""),)
            duration_us = cost.index_us(batch.token_keys, prefill)
            self._put("forward.index", work.at(layer).index, batch, duration_us, layer, scores)
            self._guards.before_latent_read(self.compute, batch.loads, layer)
            gathers = (Access(False, tier, "latent", layer, context, ""),)
            self._put("forward.attend", work.at(layer).attend, batch, cost.attend_us(tokens, prefill), layer, gathers)
            duration_us = cost.feed_forward_us(tokens, prefill)
            self._put("forward.feed_forward", work.at(layer).feed_forward, batch, duration_us, layer)
        layers = self._memory.pool.layers
        tail_us = cost.tail_us(len(batch.members), tokens, batch.token_keys, prefill, layers)
        self._put("forward.sample", work.sample, batch, tail_us)
        self._put("forward.download", work.download, batch, cost.embed_us(tokens))
        work.done.record(self.compute)
        return work

    def _put(
        self,
        name: str,
        body: Body,
        batch: Batch,
        duration_us: float,
        layer: int = -1,
        declared: tuple[Access, ...] = (),
    ) -> None:
        self._device.charge(self._cost.launch_prefill_us if batch.prefill else self._cost.launch_decode_us)
        self.compute.enqueue(
            name,
            body,
            duration_us=duration_us,
            layer=layer,
            step=batch.number,
            requests=batch.requests,
            declared=declared,
        )


class StepWork:
    """The bodies of one step's operations and the temporaries that flow between them."""

    def __init__(self, batch: Batch, memory: Memory, check: ReadCheck, done: Event) -> None:
        self.batch = batch
        self.done = done
        self.result: Sampled | None = None  # host memory, written by the download
        self._memory = memory
        self._check = check
        self._member_of_token, self._positions, self._last_tokens = batch.layout()
        self._rows = np.array([member.row for member in batch.members], np.int64)
        self._ends = np.array([member.end for member in batch.members], np.int64)
        self._hidden: torch.Tensor | None = None
        self._context: Context | None = None
        self._projected: Projected | None = None
        self._selected: Selected | None = None
        self._sampled: Sampled | None = None

    def at(self, layer: int) -> "LayerWork":
        """Return the bodies of one layer's operations."""
        return LayerWork(self, layer)

    def upload(self, recorder: Recorder) -> Commit:
        """Copy the staging buffer, as it is when this runs, into the request rows."""
        return lambda: self.batch.staging.write_to(self._memory.rows)

    def embed(self, recorder: Recorder) -> Commit:
        """Take the input tokens, prompt or future-token slots, and lay out the batch."""
        rows, memory = self._rows[self._member_of_token], self._memory
        rows_tokens = memory.rows.tokens[rows, self._positions]
        tokens = rows_tokens if self.batch.prefill else memory.rows.next_token[rows]
        pages = int(self._ends.max() - 1) // memory.pool.page_tokens + 1
        table = memory.rows.table[self._rows, :pages]
        if memory.model is not None:
            self._hidden = memory.model.embed(torch.from_numpy(tokens))
            self._context = memory.model.context(
                torch.from_numpy(table),
                torch.from_numpy(self._member_of_token),
                torch.from_numpy(self._positions),
                page_size=memory.pool.page_tokens,
            )

        def commit() -> None:
            if not self.batch.prefill:
                memory.rows.append(rows, self._positions)
            prefix = memory.rows.prefix[self._rows, : pages * memory.pool.page_tokens]
            self.reads = self._check.step(self.batch, table, prefix)

        return commit

    def sample(self, recorder: Recorder) -> Commit:
        """Choose the next token of every member whose prompt is complete."""
        members = [member for member in self.batch.members if member.samples]
        memory = self._memory
        if not members:
            return lambda: None
        if memory.model is None:
            rows = np.array([member.row for member in members], np.int64)
            ends = np.array([member.end - 1 for member in members], np.int64)
            sampled = sample_stamps(memory.rows.prefix[rows, ends], memory.vocabulary)
        else:
            assert self._hidden is not None
            logits = memory.model.logits(self._hidden[torch.from_numpy(self._last_tokens)])
            sampled = sample(logits, [(member.request.sampling, member.end) for member in members])

        def commit() -> None:
            memory.rows.next_token[[member.row for member in members]] = sampled.tokens
            self._sampled = sampled

        return commit

    def download(self, recorder: Recorder) -> Commit:
        """Copy the samples into host memory; the host reads them behind `done`."""
        sampled = self._sampled

        def commit() -> None:
            self.result = sampled
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
            step._projected = model.project(self.layer, step._hidden, torch.from_numpy(step._positions))
            rows = {"latent": step._projected.latent, "index": step._projected.index_key}
        reads = step.reads

        def commit() -> None:
            for component, values in rows.items():
                slots, prefix, taint = reads.token_slots, reads.token_prefix, reads.token_taint()
                pool.write_slots(component, self.layer, slots, values, prefix, taint)
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
