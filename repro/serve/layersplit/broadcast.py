"""How a rank comes by the layers that it doesn't keep: broadcasts into scratch buffers, and what orders them.

    collective  [ index keys of layer i ] [ new rows ] [ latents of layer i ]
    compute                        patch ^  [ index ]               patch ^  [ attend ]

The owner sends what earlier steps have stored: their tokens' gather, which is before it on the stream, was
behind all that they did. The step's own rows come to all ranks by the gather, and are
patched over what the broadcast brings: the last page of a prompt has rows of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from repro.base.lazy import torch
from repro.base.probe import Access, Component
from repro.serve.device.base import Commit, Device, Event, Recorder, Stream
from repro.serve.device.cost import CostModel
from repro.serve.guards import Guards
from repro.serve.guards.waits import LayerLoads
from repro.serve.kv.pool import COMPONENTS, Names, Pages, Rows
from repro.serve.layersplit.collective import Collective, Exchange, Payload
from repro.serve.layersplit.partition import Partition, owner_of
from repro.serve.memory import Memory


@dataclass(frozen=True)
class RankParts:
    """What the host code of one rank works with."""

    device: Device
    compute: Stream
    collective: Collective
    partition: Partition
    memory: Memory
    names: Names
    guards: Guards
    cost: CostModel


class LayerBroadcast:
    """One rank's part in the broadcasts of all layers, on `stream`."""

    def __init__(self, parts: RankParts, stream: Stream) -> None:
        self._stream = stream
        self._collective = parts.collective
        self._partition = parts.partition
        self._memory = parts.memory
        self._names = parts.names
        self._guards = parts.guards
        self._cost = parts.cost
        layers, buffers = range(self._partition.layers), range(self._partition.settings.scratch)

        def events(what: str, numbers: range) -> dict[Component, list[Event]]:
            return {each: [parts.device.event(f"{each}{number}.{what}") for number in numbers] for each in COMPONENTS}

        self._arrived = events("arrived", layers)
        self._last_use = events("used", buffers)

    def send(
        self,
        layer: int,
        component: Component,
        pages: Pages,
        loads: LayerLoads | None,
        step: int,
        requests: tuple[str, ...],
    ) -> None:
        """Enqueue the broadcast of a layer's pages from its owner; nothing where all ranks keep all layers."""
        if not self._partition.settings.split:
            return
        keeps, guards = layer in self._partition.kept, self._guards
        if keeps:  # also where nothing is sent now: the load-back's pages may be sent in a later step
            guards.waits.before_broadcast(self._stream, loads, layer)
        if not len(pages):
            return
        if not keeps:
            guards.waits.before_scratch_reuse(self._stream, self._last_use[component][self._partition.buffer(layer)])
        guards.decisions.before_broadcast_call(self._collective)
        layers, ranks = self._partition.layers, self._partition.settings.ranks
        root = guards.decisions.broadcast_root(owner_of(layer, layers, ranks), layer, layers, ranks)
        self._collective.broadcast(self._stream, self._exchange(layer, component, pages, step, requests), root)
        self._arrived[component][layer].record(self._stream)

    def before_patch(self, compute: Stream, layer: int, component: Component) -> None:
        """Let `compute` write new rows of a layer."""
        self._guards.waits.before_patch(compute, self._arrived[component][layer])

    def before_read(self, compute: Stream, layer: int, component: Component) -> None:
        """Let `compute` read a layer."""
        self._guards.waits.before_scratch_read(compute, self._arrived[component][layer])

    def was_read(self, compute: Stream, layer: int, component: Component) -> None:
        """Note that a layer has been read by what is on `compute` so far."""
        if layer not in self._partition.kept:
            self._last_use[component][self._partition.buffer(layer)].record(compute)

    def _exchange(
        self, layer: int, component: Component, pages: Pages, step: int, requests: tuple[str, ...]
    ) -> Exchange:
        home, number = self._memory.homes[layer], self._names.page_sets.intern(pages)
        reads = Access(False, home.pool.tier, component, home.layer, number, "")
        writes = Access(True, home.pool.tier, component, home.layer, number, "")

        def read(recorder: Recorder) -> Payload:
            recorder.access(reads)
            return _sent(home.pool.read(component, home.layer, pages))

        def write(recorder: Recorder, sent: Sequence[Payload]) -> Commit:
            recorder.access(writes)
            [payload] = sent
            return lambda: home.pool.write(component, home.layer, pages, _received(payload))

        tokens = len(pages) * home.pool.page_tokens
        return Exchange(
            name=component,
            layer=layer,
            step=step,
            requests=requests,
            read=read,
            write=write,
            duration_us=self._cost.broadcast_us(tokens, self._cost.row_bytes(component)),
            reads=(reads,),
            writes=(writes,),
        )


def _sent(rows: Rows) -> Payload:
    marks = (torch.from_numpy(rows.stamps.view(np.int64)), torch.from_numpy(rows.taint))
    return marks if rows.values is None else (*marks, rows.values)


def _received(payload: Payload) -> Rows:
    stamps, taint, *values = payload
    return Rows(values[0] if values else None, stamps.numpy().view(np.uint64), taint.numpy())
