"""The kernels that SGLang's cache classes launch, as operations of the simulated device.

Each takes what SGLang passes, puts one operation (a copy: one for each layer and group of pages) on SGLang's
current stream and returns. Indices and addresses are fixed at the launch; bytes are read when the operation
starts and written when it ends.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from repro.base.probe import Access, Component, Tier
from repro.engines.sglang.classes.host_memory import unpin
from repro.engines.sglang.classes.launches import Launches, Launching, note
from repro.engines.sglang.classes.rows import INDEX_KEY_BYTES, INDEX_SCALE_BYTES
from repro.engines.sglang.classes.streams import DeviceModule
from repro.engines.sglang.fits import PAGE_TOKENS
from repro.engines.sglang.pinned import Sglang
from repro.serve.device.base import Commit, Device, Recorder
from repro.serve.device.cost import CostModel
from repro.serve.kv.pool import PageSets

KEY_PAGE_BYTES = PAGE_TOKENS * INDEX_KEY_BYTES  # a page of the index pool: all keys, then all scales
LAUNCH_COPY_US = 5.0  # host time of one memcpy call; each layer and group makes one


class Place(NamedTuple):
    """What a buffer holds."""

    tier: Tier
    component: Component
    layer: int


@dataclass(frozen=True)
class Copied:
    """One copy: rows of one buffer into rows of another, when its stream reaches it."""

    source: torch.Tensor
    target: torch.Tensor
    source_rows: torch.Tensor
    target_rows: torch.Tensor
    touched: tuple[Access, Access]  # the read, the write

    def __call__(self, recorder: Recorder) -> Commit:
        rows = self.source[self.source_rows]
        note(recorder, self.touched)

        def commit() -> None:
            self.target[self.target_rows] = rows

        return commit


class Kernels(Launches):
    """The kernels of one engine. `bind` puts them into SGLang's modules, in the place of those bound before."""

    def __init__(
        self, device: Device, module: DeviceModule, page_sets: PageSets, cost: CostModel, group_pages: int
    ) -> None:
        super().__init__(device, module, cost)
        self._page_sets = page_sets
        self._group_pages = group_pages
        self._places: dict[int, Place] = {}
        self._transfers = 0
        self.launching: Launching | None = None  # the step that launches kernels now

    def bind(self, sglang: Sglang) -> None:
        """Let SGLang's modules launch these kernels, on this module's streams."""
        for controller in (sglang.cache_controller, sglang.hybrid_controller):
            controller.device_module = self._module
        sglang.memory_pool_host.transfer_kv_direct = self._transfer_kv_direct
        unpin(sglang.memory_pool_host)
        sglang.memory_pool.set_mla_kv_buffer_triton = self._set_mla_kv_buffer
        sglang.index_accessor.GetKAndS.execute = self._get_k_and_s
        sglang.index_accessor.SetKAndS.execute = self._set_k_and_s

    def know(self, tier: Tier, component: Component, layers: Sequence[torch.Tensor]) -> None:
        """Remember what the buffers of one pool hold, by layer."""
        for layer, buffer in enumerate(layers):
            self._places[buffer.data_ptr()] = Place(tier, component, layer)

    def store_index(self, buffer: torch.Tensor, slots: torch.Tensor, keys: torch.Tensor, scales: torch.Tensor) -> None:
        """Launch the store of new index rows, (tokens, 128) and (tokens, 4) bytes, into an index pool's layer."""
        self._store_index(buffer, slots, keys, scales)

    # -- what SGLang calls; a leading underscore lets an operation's site be the line of SGLang that launched it --

    def _transfer_kv_direct(
        self,
        src_layers: Sequence[torch.Tensor],
        dst_layers: Sequence[torch.Tensor],
        src_indices: torch.Tensor,
        dst_indices: torch.Tensor,
        page_size: int,
    ) -> None:
        """Copy rows (tokens, or whole pages where `page_size` is 1) between host and device, layer by layer."""
        self._transfers += 1
        group = self._group_pages * page_size
        sources, targets = torch.split(src_indices, group), torch.split(dst_indices, group)
        for source, target in zip(src_layers, dst_layers, strict=True):
            for source_rows, target_rows in zip(sources, targets, strict=True):
                self._copy(source, target, source_rows.clone(), target_rows.clone(), page_size)

    def _copy(
        self,
        source: torch.Tensor,
        target: torch.Tensor,
        source_rows: torch.Tensor,
        target_rows: torch.Tensor,
        page_size: int,
    ) -> None:
        came, goes = self._places[source.data_ptr()], self._places[target.data_ptr()]
        assert came[1:] == goes[1:], f"SGLang copies {came} into {goes}"
        touched = (
            Access(False, came.tier, came.component, came.layer, self._pages(source_rows, page_size), ""),
            Access(True, goes.tier, goes.component, goes.layer, self._pages(target_rows, page_size), ""),
        )
        tokens = len(source_rows) // page_size * PAGE_TOKENS
        self._device.charge(LAUNCH_COPY_US)
        self._module.current_stream().stream.enqueue(
            "loadback.copy_layer" if came.tier == "host" else "writeback.copy_layer",
            Copied(source, target, source_rows, target_rows, touched),
            duration_us=self._cost.copy_us(tokens, self._cost.row_bytes(came.component)),
            layer=came.layer,
            step=self._transfers,
            declared=touched,
        )

    def _pages(self, rows: torch.Tensor, page_size: int) -> int:
        """Return the page set of copied rows; those of a page follow each other."""
        return self._page_sets.intern((rows[::page_size] // page_size).numpy().astype(np.int32))

    def _get_k_and_s(
        self,
        pool: Any,
        buf: torch.Tensor,
        page_indices: torch.Tensor,
        seq_len_tensor: torch.Tensor,
        seq_len_sum: int,
        max_seq_len: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Gather the index rows of sequences, (tokens, 128) and (tokens, 4) bytes, one after another."""
        step, layer = self._step(), self._places[buf.data_ptr()].layer
        keys = torch.zeros((seq_len_sum, INDEX_KEY_BYTES), dtype=torch.uint8)
        scales = torch.zeros((seq_len_sum, INDEX_SCALE_BYTES), dtype=torch.uint8)
        touched = step.accesses(False, "index", layer)

        def body(recorder: Recorder) -> Commit:
            found_keys, found_scales = _gathered(buf, page_indices, seq_len_tensor)
            note(recorder, touched)
            step.check(recorder, "index", layer, torch.cat((found_keys, found_scales), dim=1).numpy())

            def commit() -> None:
                keys.copy_(found_keys)
                scales.copy_(found_scales)

            return commit

        self._put(step, "forward.index", body, self._cost.index_us(step.token_keys, True), layer, touched)
        return keys, scales

    def _set_k_and_s(
        self, pool: Any, buf: torch.Tensor, loc: torch.Tensor, index_k: torch.Tensor, index_k_scale: torch.Tensor
    ) -> None:
        self._store_index(buf, loc, index_k, index_k_scale)

    def _store_index(self, buffer: torch.Tensor, slots: torch.Tensor, keys: torch.Tensor, scales: torch.Tensor) -> None:
        step, layer = self._step(), self._places[buffer.data_ptr()].layer
        touched = step.accesses(True, "index", layer)

        def body(recorder: Recorder) -> Commit:
            stored_keys, stored_scales = keys.clone(), scales.clone()
            note(recorder, touched)

            def commit() -> None:
                of_keys, of_scales = _parts(buffer)
                pages, offsets = slots // PAGE_TOKENS, slots % PAGE_TOKENS
                of_keys[pages, offsets] = stored_keys
                of_scales[pages, offsets] = stored_scales

            return commit

        self._put(step, "forward.store", body, self._cost.store_us(len(slots), True), layer, touched)

    def _set_mla_kv_buffer(
        self, kv_buffer: torch.Tensor, loc: torch.Tensor, cache_k_nope: torch.Tensor, cache_k_rope: torch.Tensor
    ) -> None:
        """Store new latents, (tokens, 1, 512) and (tokens, 1, 64) bf16."""
        step, layer = self._step(), self._places[kv_buffer.data_ptr()].layer
        touched = step.accesses(True, "latent", layer)

        def body(recorder: Recorder) -> Commit:
            rows = torch.cat((cache_k_nope, cache_k_rope), dim=-1)
            note(recorder, touched)

            def commit() -> None:
                kv_buffer[loc] = rows

            return commit

        self._put(step, "forward.store", body, self._cost.kernel_fixed_us, layer, touched)

    def _step(self) -> Launching:
        assert self.launching is not None, "SGLang launches a kernel of a forward pass, and no step is being launched"
        return self.launching


def _parts(buffer: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return views of an index pool's layer: (pages, tokens, 128) keys and (pages, tokens, 4) scales."""
    keys, scales = buffer[:, :KEY_PAGE_BYTES], buffer[:, KEY_PAGE_BYTES:]
    return keys.view(-1, PAGE_TOKENS, INDEX_KEY_BYTES), scales.view(-1, PAGE_TOKENS, INDEX_SCALE_BYTES)


def _gathered(
    buffer: torch.Tensor, page_indices: torch.Tensor, lengths: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the keys and scales of the first tokens of these pages, the sequences one after another."""
    of_keys, of_scales = _parts(buffer)
    keys, scales = [], []
    for pages, length in zip(page_indices, lengths.tolist(), strict=True):
        used = pages[: -(-length // PAGE_TOKENS)].long()
        keys.append(of_keys[used].flatten(0, 1)[:length])
        scales.append(of_scales[used].flatten(0, 1)[:length])
    return torch.cat(keys), torch.cat(scales)
