"""SGLang's radix cache with its controller, pools and allocator, put together as its server does for a DSA model.

Everything here that holds or moves KV is SGLang's own class. Of ours are the streams and kernels beneath it, the
clock by which it ages its nodes, and what listens to it.
"""

import atexit
import gc
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from repro.base.probe import CacheEvent, PageEvent, Probes
from repro.engines.sglang.classes.kernels import Kernels
from repro.engines.sglang.classes.rows import INDEX_KEY_BYTES
from repro.engines.sglang.fits import PAGE_TOKENS
from repro.engines.sglang.pinned import Sglang
from repro.serve.config import EngineConfig
from repro.serve.device.base import Device
from repro.serve.kv.pool import PageSets

KV_LORA, ROPE = 512, 64  # widths of a latent row in GLM-5 and DeepSeek V3.2
# What read index keys without waiting for their layer, before SGLang #22811.
INDEX_ACCESSORS = ("get_index_k_continuous", "get_index_k_scale_continuous", "get_index_k_scale_buffer")


class OneRank:
    """A process group of this process alone."""

    def size(self) -> int:
        """Return 1."""
        return 1


class VirtualClock:
    """Stands where SGLang's cache has the module `time`: virtual seconds, and no two moments alike.

    One for all modules of a cache: the radix tree's files age the same nodes.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._asked = 0

    def monotonic(self) -> float:
        """Return the virtual time, a little later at each call: the least recently used node is then one node."""
        self._asked += 1
        return self._device.now_us / 1e6 + self._asked * 1e-9

    perf_counter = monotonic


class SglangCache:
    """The tree of one engine, and the pools beneath it. `awaits_index` False takes the waits of #22811 away.

    Only the engine that was made last may be used: SGLang's modules launch that one's kernels.
    """

    def __init__(
        self,
        config: EngineConfig,
        layers: int,
        sglang: Sglang,
        kernels: Kernels,
        device: Device,
        page_sets: PageSets,
        probes: Probes,
        *,
        awaits_index: bool,
    ) -> None:
        self._sglang = sglang
        self._device = device
        self._page_sets = page_sets
        self._probes = probes
        self.owner = "tree"  # the owner of pages that are allocated now
        self.load_back_tokens = 0
        self.evicted_tokens = 0
        gc.collect()  # the pools of the engine before are held by cycles alone, hundreds of megabytes
        kernels.bind(sglang)
        clock = VirtualClock(device)
        for module in (sglang.radix_cache, sglang.hiradix_cache, sglang.cache_controller):
            module.time = clock
        tokens = config.device_pages * PAGE_TOKENS
        self.pool: Any = sglang.memory_pool.NSATokenToKVPool(
            size=tokens, page_size=PAGE_TOKENS, kv_lora_rank=KV_LORA, dtype=torch.bfloat16, qk_rope_head_dim=ROPE,
            layer_num=layers, device="cpu", index_head_dim=INDEX_KEY_BYTES, enable_memory_saver=False,
            kv_cache_dim=KV_LORA + ROPE,
        )  # fmt: skip
        self.allocator: Any = sglang.allocator.PagedTokenToKVPoolAllocator(
            tokens, PAGE_TOKENS, torch.bfloat16, "cpu", self.pool, need_sort=config.free_list == "deferred_sorted"
        )
        self.rows: Any = sglang.memory_pool.ReqToTokenPool(config.rows, config.context_tokens, "cpu", False)
        self.tree: Any = sglang.hiradix_cache.HiRadixCache(self._params(), _server_args(config))
        # It would keep the pools of every engine until the process ends, for a storage backend that none has.
        atexit.unregister(self.tree.shutdown)
        kernels.know("device", "latent", self.pool.kv_buffer)
        kernels.know("device", "index", self.pool.index_k_with_scale_buffer)
        host, index_host = (entry.host_pool for entry in self.controller.mem_pool_host.entries)
        kernels.know("host", "latent", host.kv_buffer)
        kernels.know("host", "index", index_host.index_k_with_scale_buffer)
        self._listen()
        if not awaits_index:
            _take_index_waits(self.pool)

    @property
    def controller(self) -> Any:
        """Return SGLang's HybridCacheController."""
        return self.tree.cache_controller

    @property
    def pending(self) -> bool:
        """Return whether the tree waits for the end of a transfer."""
        return bool(self.controller.ack_write_queue or self.controller.ack_load_queue)

    async def settle(self) -> None:
        """Wait until the oldest transfer of each direction under way has ended, and let the tree take note."""
        for acks in (self.controller.ack_write_queue, self.controller.ack_load_queue):
            if acks:
                await acks[0].finish_event.event.synchronize("a transfer has ended, and its nodes may be evicted")
        self.tree.check_hicache_events()

    def match(self, tokens: list[int], extra_key: str | None) -> Any:
        """Return SGLang's MatchResult of a prompt: at least its last token is computed."""
        key = self._sglang.radix_cache.RadixKey(tokens[:-1], extra_key)
        return self.tree.match_prefix(self._sglang.prefix_cache.MatchPrefixParams(key=key))

    def load_back(self, match: Any, request: str) -> tuple[Any, Any]:
        """Queue the load-back of what a match has on the host; return (device slots, the tree's node)."""
        params = self._sglang.prefix_cache.InitLoadBackParams(
            last_host_node=match.last_host_node, host_hit_length=match.host_hit_length
        )
        self.owner = "tree"
        slots, node = self.tree.init_load_back(params)
        if len(slots):
            self.load_back_tokens += len(slots)
            self._probes.emit(CacheEvent("load_back", len(slots), self._device.now_us, request))
        return slots, node

    def take(self, tokens: int, request: str) -> Any:
        """Return new slots for whole pages, (tokens,) int64, evicting what is needed; None without room."""
        self.owner = request
        missing = tokens - self.allocator.available_size()
        if missing > 0:
            self.tree.evict(self._sglang.prefix_cache.EvictParams(num_tokens=missing))
        return self.allocator.alloc(tokens)

    def drop(self) -> None:
        """Evict everything that no request uses, from both tiers."""
        everything = 2**40
        self.tree.evict(self._sglang.prefix_cache.EvictParams(num_tokens=everything))
        self.tree.evict_host(everything)

    def _params(self) -> Any:
        return self._sglang.init_params.CacheInitParams(
            disable=False,
            req_to_token_pool=self.rows,
            token_to_kv_pool_allocator=self.allocator,
            page_size=PAGE_TOKENS,
            tp_cache_group=OneRank(),
        )

    # -- listening ------------------------------------------------------------------------------------

    def _listen(self) -> None:
        """Emit an event for each allocation, release and eviction. What SGLang does stays the same."""
        alloc, free = self.allocator.alloc, self.allocator.free
        evict, evict_host, write = self.tree.evict, self.tree.evict_host, self.controller.write

        def seen_alloc(tokens: int) -> Any:
            slots = alloc(tokens)
            if slots is not None:
                self._emit_pages("alloc", slots)
            return slots

        def seen_free(slots: Any) -> None:
            self._emit_pages("free", slots)
            free(slots)

        def seen_evict(params: Any) -> Any:
            result = evict(params)
            self.evicted_tokens += result.num_tokens_evicted
            if result.num_tokens_evicted:
                self._emit_cache("evict_device", result.num_tokens_evicted)
            return result

        def seen_evict_host(tokens: int) -> None:
            host = self.controller.mem_pool_host
            before = host.available_size()
            evict_host(tokens)
            if host.available_size() > before:
                self._emit_cache("evict_host", host.available_size() - before)

        def seen_write(device_indices: Any, **keywords: Any) -> Any:
            target = write(device_indices=device_indices, **keywords)
            if target is not None:
                self._emit_cache("write_back", len(target))
            return target

        self.allocator.alloc, self.allocator.free = seen_alloc, seen_free
        self.tree.evict, self.tree.evict_host, self.controller.write = (
            seen_evict,
            seen_evict_host,
            seen_write,
        )

    def _emit_cache(self, what: str, tokens: int) -> None:
        self._probes.emit(CacheEvent(what, tokens, self._device.now_us))

    def _emit_pages(self, what: str, slots: Any) -> None:
        pages = np.unique(slots.numpy() // PAGE_TOKENS).astype(np.int32)
        if len(pages):
            named, host = self._page_sets.intern(pages), self._device.tick()
            if what == "alloc":
                self._probes.emit(PageEvent("alloc", "device", named, self.owner, host, self._device.now_us))
            else:
                self._probes.emit(PageEvent("free", "device", named, "", host, self._device.now_us))


def _server_args(config: EngineConfig) -> Any:
    """Return what SGLang's cache reads of the server's arguments."""
    return SimpleNamespace(
        # Host pages are counted with one more than asked for, so that many are usable.
        hicache_ratio=(config.host_pages - 1) / config.device_pages,
        hicache_size=0,
        hicache_mem_layout="layer_first",
        hicache_io_backend="direct",
        hicache_write_policy=config.write_policy,
        hicache_storage_backend=None,
        hicache_storage_backend_extra_config=None,
        hicache_storage_prefetch_policy="best_effort",
        served_model_name=config.name,
        extra_metric_labels=None,
    )


def _take_index_waits(pool: Any) -> None:
    """Let a pool's index accessors be as they were before SGLang #22811: they look for no load-back to wait for.

    They stay SGLang's own functions; the counter that each of them would wait on is hidden while it runs.
    """
    for name in INDEX_ACCESSORS:
        setattr(pool, name, _without_wait(pool, getattr(pool, name)))


def _without_wait(pool: Any, accessor: Callable[..., Any]) -> Callable[..., Any]:
    def _read_at_once(*args: Any, **keywords: Any) -> Any:
        counter, pool.layer_transfer_counter = pool.layer_transfer_counter, None
        try:
            return accessor(*args, **keywords)
        finally:
            pool.layer_transfer_counter = counter

    return _read_at_once
