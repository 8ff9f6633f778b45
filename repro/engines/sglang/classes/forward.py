"""The layers of a prefill as a DSA model of SGLang runs them, down to what they do to the KV pools.

    embed, [ store index keys, index, store latents, attend, feed forward ] per layer, sample

Index keys and latents go in and out through SGLang's pool, which waits for load-backs or does not. There is no
model: a new row is a function of its prefix, and of the wrong bytes that its request has met in earlier layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from repro.base.probe import Access, BadRead, Component, Probes
from repro.engines.sglang.classes.cache import KV_LORA, ROPE, SglangCache
from repro.engines.sglang.classes.kernels import Kernels
from repro.engines.sglang.classes.launches import Launches, note
from repro.engines.sglang.classes.rows import INDEX_KEY_BYTES, INDEX_SCALE_BYTES, Bytes, as_bytes, compare, rows_of
from repro.engines.sglang.classes.streams import DeviceModule
from repro.engines.sglang.fits import PAGE_TOKENS
from repro.serve.device.base import Commit, Device, Event, Recorder
from repro.serve.device.cost import CostModel
from repro.serve.kv.pool import Names
from repro.serve.kv.stamps import Words


@dataclass(frozen=True)
class Member:
    """A request's part of a step: the tokens from `first` on are new."""

    request: str
    prefix: Words  # words of the whole prompt
    slots: torch.Tensor  # (tokens,) int64, of the whole prompt
    first: int

    @property
    def end(self) -> int:
        """Return how many tokens the prompt has."""
        return len(self.prefix)

    def pages(self, first: int) -> NDArray[np.int32]:
        """Return the pages of the tokens from `first` on, in their order."""
        return (self.slots[first - first % PAGE_TOKENS :: PAGE_TOKENS] // PAGE_TOKENS).numpy().astype(np.int32)


class BadReads:
    """The bad reads of one engine, each noted once."""

    def __init__(self, device: Device, names: Names, probes: Probes) -> None:
        self.device = device
        self.names = names
        self.probes = probes
        self.noted: dict[tuple[str, int], None] = {}  # (request, origin) pairs


class Step:
    """One prefill of several requests (`launches.Launching`), with the temporaries that its layers pass on."""

    def __init__(self, number: int, members: Sequence[Member], bad_reads: BadReads, done: Event) -> None:
        self.number = number
        self.members = tuple(members)
        self.requests = tuple(member.request for member in members)
        self.done = done
        counts = [(member.first, member.end - member.first) for member in members]
        self.tokens = sum(count for _, count in counts)
        self.token_keys = sum(count * (2 * first + 1 + count) // 2 for first, count in counts)
        self.new_slots = torch.cat([member.slots[member.first :] for member in members])
        self.lengths = torch.tensor([member.end for member in members])
        self.latents = torch.zeros((self.tokens, 1, KV_LORA + ROPE), dtype=torch.bfloat16)
        self.keys = torch.zeros((self.tokens, INDEX_KEY_BYTES), dtype=torch.uint8)
        self.scales = torch.zeros((self.tokens, INDEX_SCALE_BYTES), dtype=torch.uint8)
        self._taint = [0] * len(self.members)  # the bad read that what a member stores stems from
        self._bad_reads = bad_reads
        sets = bad_reads.names.page_sets
        self._read = [sets.intern(member.pages(0)) for member in members]
        self._written = [sets.intern(member.pages(member.first)) for member in members]

    @cached_property
    def table(self) -> torch.Tensor:
        """Return the block table, (members, pages); a shorter context is padded with page 0."""
        rows = [torch.from_numpy(member.pages(0).astype(np.int64)) for member in self.members]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)

    def accesses(self, write: bool, component: Component, layer: int) -> tuple[Access, ...]:
        """Return what it touches in a layer: the pages of its contexts to read, of its new rows to write."""
        sets = self._written if write else self._read
        return tuple(
            Access(write, "device", component, layer, pages, request)
            for pages, request in zip(sets, self.requests, strict=True)
        )

    def project(self, layer: int) -> Commit:
        """Return what writes this layer's new rows into the temporaries, as the bad reads so far leave them."""
        rows: dict[Component, Bytes] = {}
        for component in ("latent", "index"):
            rows[component] = np.concatenate(
                [
                    rows_of(member.prefix[member.first :], component, layer, origin)
                    for member, origin in zip(self.members, self._taint, strict=True)
                ]
            )

        def commit() -> None:
            as_bytes(self.latents)[:] = rows["latent"]
            self.keys.numpy()[:] = rows["index"][:, :INDEX_KEY_BYTES]
            self.scales.numpy()[:] = rows["index"][:, INDEX_KEY_BYTES:]

        return commit

    def check(self, recorder: Recorder, component: Component, layer: int, rows: Bytes) -> None:
        """Compare (tokens, width) rows, the members' contexts one after another, with what they ought to be."""
        start = 0
        for place, member in enumerate(self.members):
            found = compare(
                rows[start : start + member.end], member.prefix, component, layer, self._bad_reads.names.bad_reads
            )
            start += member.end
            if found.wrong.any():
                self._report(recorder, component, layer, place, found.wrong, 0)
            for origin in np.unique(found.origin[found.origin > 0]).tolist():
                self._report(recorder, component, layer, place, found.origin == origin, origin)

    def _report(
        self,
        recorder: Recorder,
        component: Component,
        layer: int,
        place: int,
        rows: NDArray[np.bool_],
        origin: int,
    ) -> None:
        """Tell a bad read; what the member stores from now on stems from it, or from the one that it met."""
        member, bad_reads = self.members[place], self._bad_reads
        if origin:
            self._taint[place] = self._taint[place] or origin
            if (member.request, origin) in bad_reads.noted:
                return
        bad_read = bad_reads.names.bad_read()
        self._taint[place] = self._taint[place] or origin or bad_read
        bad_reads.noted[member.request, origin or bad_read] = None
        stream, index = recorder.ref
        wrong = np.flatnonzero(rows)
        pages = member.pages(0)[np.unique(wrong // PAGE_TOKENS)]
        bad_reads.probes.emit(
            BadRead(
                id=bad_read,
                stream=stream,
                index=index,
                component=component,
                layer=layer,
                request=member.request,
                tokens=len(wrong),
                first_position=int(wrong[0]),
                pages=bad_reads.names.page_sets.intern(pages),
                origin=origin,
                at_us=bad_reads.device.now_us,
            )
        )


class Forward(Launches):
    """Enqueues steps on the compute stream."""

    def __init__(
        self,
        device: Device,
        module: DeviceModule,
        cost: CostModel,
        kernels: Kernels,
        cache: SglangCache,
        *,
        index_topk: int,
        fused_store: bool,
    ) -> None:
        super().__init__(device, module, cost)
        self._kernels = kernels
        self._pool = cache.pool
        self._counter = cache.controller.layer_done_counter
        self._layers = cache.pool.layer_num
        self._index_topk = index_topk
        self._fused_store = fused_store

    def launch(self, step: Step, consumer: int) -> None:
        """Enqueue a whole step; `consumer` is the load-back that it depends on, -1 for none."""
        self._device.charge(self._cost.prepare_us)
        self._counter.set_consumer(consumer)
        self._kernels.launching = step
        cost, tokens = self._cost, step.tokens
        self._put(step, "forward.embed", lambda recorder: step.project(0), cost.embed_us(tokens))
        for layer in range(self._layers):
            self._store_index(step, layer)
            if int(step.lengths.max()) > self._index_topk:  # a shorter context is taken whole, unscored
                self._index(step, layer)
            self._pool.set_mla_kv_buffer(
                SimpleNamespace(layer_id=layer),
                step.new_slots,
                step.latents[..., :KV_LORA],
                step.latents[..., KV_LORA:],
            )
            self._attend(step, layer)
            self._feed_forward(step, layer)
        tail_us = cost.tail_us(len(step.members), tokens, step.token_keys, True, self._layers)
        self._put(step, "forward.sample", lambda recorder: None, tail_us)
        step.done.record(self._module.current_stream().stream)
        self._kernels.launching = None

    def _store_index(self, step: Step, layer: int) -> None:
        """Store the new index keys; the fused store takes its buffer from an accessor that waits."""
        if self._fused_store:
            buffer = self._pool.get_index_k_with_scale_buffer(layer)
            self._kernels.store_index(buffer, step.new_slots, step.keys, step.scales)
        else:
            self._pool.set_index_k_scale_buffer(layer, step.new_slots, step.keys, step.scales)

    def _index(self, step: Step, layer: int) -> None:
        lengths = step.lengths
        self._pool.get_index_k_scale_buffer(layer, lengths, step.table, int(lengths.sum()), int(lengths.max()))

    def _attend(self, step: Step, layer: int) -> None:
        latents: Any = self._pool.get_key_buffer(layer)
        slots = torch.cat([member.slots for member in step.members])
        touched = step.accesses(False, "latent", layer)

        def body(recorder: Recorder) -> None:
            note(recorder, touched)
            step.check(recorder, "latent", layer, as_bytes(latents[slots]))

        self._put(step, "forward.attend", body, self._cost.attend_us(step.tokens, True), layer, touched)

    def _feed_forward(self, step: Step, layer: int) -> None:
        def body(recorder: Recorder) -> Commit | None:
            return step.project(layer + 1) if layer + 1 < self._layers else None

        self._put(step, "forward.feed_forward", body, self._cost.feed_forward_us(step.tokens, True), layer)
