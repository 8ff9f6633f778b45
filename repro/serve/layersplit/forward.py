"""One rank's host code of a step: the operations in the order they are enqueued, and what orders them."""

from dataclasses import replace
from functools import partial

from repro.base.probe import Access, Component
from repro.serve.kv.copier import TierCopier
from repro.serve.kv.pool import COMPONENTS
from repro.serve.kv.reads import ReadCheck
from repro.serve.launches import Launches
from repro.serve.layersplit.broadcast import LayerBroadcast, RankParts
from repro.serve.layersplit.collective import Exchange
from repro.serve.layersplit.sequence import TouchedPages
from repro.serve.layersplit.work import RankWork
from repro.serve.sched.batch import Batch

TOKEN_BYTES = 16  # a chosen token and its log-probability


class RankForward(Launches):
    """Enqueues steps on one rank's streams."""

    def __init__(self, parts: RankParts, check: ReadCheck, copier: TierCopier) -> None:
        super().__init__(parts.device, parts.compute, parts.cost)
        self._stream = parts.device.stream("collective")
        self._collective = parts.collective
        self._partition = parts.partition
        self._memory = parts.memory
        self._check = check
        self._names = parts.names
        self._guards = parts.guards
        # Only the experts are sharded over all GPUs of the machine; everything else has the rank's share of them.
        self._rank_cost = replace(parts.cost, gpus=max(1, parts.cost.gpus // parts.partition.settings.ranks))
        self._copier = copier
        self._broadcast = LayerBroadcast(parts, self._stream)
        self._begun = parts.device.event("begun")
        self._projected = parts.device.event("projected")
        self._gathered = parts.device.event("gathered")

    def launch(self, batch: Batch, touched: TouchedPages) -> RankWork:
        """Enqueue a whole step and return it; its `done` event is behind the download."""
        done = self._device.event(f"step{batch.number}")
        settings = self._partition.settings
        work = RankWork(batch, self._memory, self._check, done, self._partition.rank, settings.ranks)
        self._device.charge(self._cost.prepare_us)
        fixed_us = self._cost.embed_us(batch.num_tokens)
        self._put("forward.upload", work.upload, batch, fixed_us)
        batch.staging.uploaded.record(self._compute)
        self._put("forward.embed", work.embed, batch, fixed_us)
        if settings.prefetch:
            self._send_all(batch, touched, 0)
        for layer in range(self._partition.layers):
            self._layer(work, touched, layer)
        self._end(work)
        done.record(self._compute)
        self._copier.step_enqueued(batch.number, done)
        return work

    def _layer(self, work: RankWork, touched: TouchedPages, layer: int) -> None:
        batch, part, guards = work.batch, work.part, self._guards
        part_tokens, cost, prefill = part.num_tokens, self._rank_cost, batch.prefill
        prefetch = self._partition.settings.prefetch
        if not prefetch:
            self._begun.record(self._compute)
            self._stream.wait(self._begun, "a layer is broadcast when it begins, not ahead")
            self._send(batch, touched, layer, "index")
        self._put("split.project", partial(work.project, layer), batch, cost.store_us(part_tokens, prefill), layer)
        self._gather_rows(work, layer)
        if not prefetch:
            self._send(batch, touched, layer, "latent")
        self._compute.wait(self._gathered, "the new rows of all ranks are here")
        guards.waits.before_index_store(self._compute, batch.loads, layer)
        self._patch(work, touched, layer, "index")
        guards.waits.before_index_read(self._compute, batch.loads, layer)
        self._broadcast.before_read(self._compute, layer, "index")
        scored_us = cost.index_us(part.token_keys, prefill)
        self._put(
            "forward.index", partial(work.index, layer), batch, scored_us, layer, self._reads(layer, "index", touched)
        )
        self._broadcast.was_read(self._compute, layer, "index")
        self._patch(work, touched, layer, "latent")
        guards.waits.before_latent_read(self._compute, batch.loads, layer)
        self._broadcast.before_read(self._compute, layer, "latent")
        gathers = self._reads(layer, "latent", touched)
        attend_us = cost.attend_us(part_tokens, prefill)
        self._put("forward.attend", partial(work.attend, layer), batch, attend_us, layer, gathers)
        self._broadcast.was_read(self._compute, layer, "latent")
        if prefetch and layer + 1 < self._partition.layers:
            self._send_all(batch, touched, layer + 1)
        experts_us = self._cost.feed_forward_us(batch.num_tokens, prefill)
        self._put("forward.feed_forward", partial(work.feed_forward, layer), batch, experts_us, layer)

    def _end(self, work: RankWork) -> None:
        """Sample, let all ranks know the tokens, and copy them to the host."""
        batch, part, cost = work.batch, work.part, self._rank_cost
        layers = self._partition.layers
        tail_us = cost.tail_us(len(part.members), part.num_tokens, part.token_keys, batch.prefill, layers)
        self._put("forward.sample", work.sample, batch, tail_us)
        self._projected.record(self._compute)
        self._stream.wait(self._projected, "this rank's tokens are chosen")
        sampled = len(batch.sampling_members)
        self._collective.all_gather(
            self._stream,
            Exchange(
                name="tokens",
                layer=-1,
                step=batch.number,
                requests=batch.requests,
                read=work.send_tokens,
                write=work.take_tokens,
                duration_us=cost.gather_us(sampled, TOKEN_BYTES, batch.prefill),
            ),
        )
        self._gathered.record(self._stream)
        self._compute.wait(self._gathered, "the tokens of all ranks are here")
        self._put("forward.download", work.download, batch, self._cost.embed_us(batch.num_tokens))

    def _gather_rows(self, work: RankWork, layer: int) -> None:
        batch = work.batch
        self._projected.record(self._compute)
        self._stream.wait(self._projected, "this rank's new rows are computed")
        row_bytes = sum(self._cost.row_bytes(component) for component in COMPONENTS)
        self._collective.all_gather(
            self._stream,
            Exchange(
                name="rows",
                layer=layer,
                step=batch.number,
                requests=batch.requests,
                read=work.send_rows,
                write=work.take_rows,
                duration_us=self._cost.gather_us(batch.num_tokens, row_bytes, batch.prefill),
            ),
        )
        self._gathered.record(self._stream)

    def _patch(self, work: RankWork, touched: TouchedPages, layer: int, component: Component) -> None:
        """Enqueue the store of the new rows: on the owner into its own layer, elsewhere into a scratch buffer."""
        self._broadcast.before_patch(self._compute, layer, component)
        home = self._memory.homes[layer]
        stored = self._names.page_sets.intern(touched.stored)
        writes = (Access(True, home.pool.tier, component, home.layer, stored, ""),)
        rows_us = self._cost.kernel_fixed_us
        self._put(f"split.store_{component}", partial(work.store, layer, component), work.batch, rows_us, layer, writes)

    def _send_all(self, batch: Batch, touched: TouchedPages, layer: int) -> None:
        for component in reversed(COMPONENTS):  # index keys first: the indexer comes before attention
            self._send(batch, touched, layer, component)

    def _send(self, batch: Batch, touched: TouchedPages, layer: int, component: Component) -> None:
        self._broadcast.send(layer, component, touched.older, batch.loads, batch.number, batch.requests)

    def _reads(self, layer: int, component: Component, touched: TouchedPages) -> tuple[Access, ...]:
        home = self._memory.homes[layer]
        context = self._names.page_sets.intern(touched.context)
        return (Access(False, home.pool.tier, component, home.layer, context, ""),)
