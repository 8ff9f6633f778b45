"""HiCache: device pages above host pages, with write-through below and load-back above.

    prefill/decode ──> device pages ──write stream──> host pages
                            ^                             │
                            └───────── load stream ───────┘   layer by layer

Below the host there may be files (`kv.storage_tier`). A node of the radix tree owns its pages on each tier.
Load-back gives a node its device pages before any byte has arrived; only the guards stand between those pages and
a reader.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from repro.base.probe import CacheEvent, LimitEvent, PageEvent, Probes
from repro.serve.config import EngineConfig
from repro.serve.device.base import Device, Event
from repro.serve.guards import Guards
from repro.serve.kv.copier import Copier, Done
from repro.serve.kv.loadback import LayerEvents
from repro.serve.kv.page import PageAllocator, PageChange
from repro.serve.kv.pool import NO_PAGES, KVPool, Names, Pages, Place
from repro.serve.kv.radix.eviction import evict_device, evict_host, reclaim_host
from repro.serve.kv.radix.node import Node
from repro.serve.kv.radix.tree import Match, RadixTree, TokensLike
from repro.serve.kv.storage_tier import HostTier, Prefetch, StorageTier

LOAD_BACK_MIN_PAGES = 1
WRITE_COPIES_MAX = 4096  # copies in flight: with one more transfer they still fit a stream's queue


@dataclass(frozen=True)
class Transfer:
    """A copy between tiers; the path to `leaf` is pinned until its ack, on the host too if `host_pinned`."""

    leaf: Node
    source: Pages
    target: Pages
    host_pinned: bool = True


@dataclass(frozen=True)
class Flight:
    """Transfers merged into one operation on a stream; `done` is behind its last copy."""

    transfers: list[Transfer]
    done: Done
    copies: int = 0  # copies that a write-back has in flight; nothing else bounds them


class HiCache:
    """The prefix cache over both tiers, and the only place that has its pages copied."""

    def __init__(
        self,
        config: EngineConfig,
        device: Device,
        copier: Copier,
        pools: dict[Place, KVPool],
        names: Names,
        guards: Guards,
        probes: Probes,
    ) -> None:
        self._config = config
        self._pools = pools
        self._guards = guards
        self._probes = probes
        self._copier = copier
        self.page_sets = names.page_sets
        self.tree = RadixTree(config.page_tokens)
        self.device_pages = self._allocator("device", config.device_pages)
        self.host_pages = self._allocator("host", config.host_pages)
        self._device = device
        self._load_queue: list[Transfer] = []
        self._write_queue: list[Transfer] = []
        self._loads: list[Flight] = []  # oldest first
        self._unawaited: LayerEvents | None = None  # events of a load that no batch waits for yet
        self._writes: list[Flight] = []
        self._transfers = 0
        self._last_step = np.full(config.device_pages, -1, np.int64)  # last step enqueued that used the page
        self.storage = self._storage(names) if config.storage_pages else None
        self.load_back_tokens = 0
        self.evicted_tokens = 0

    def _allocator(self, place: Place, pages: int) -> PageAllocator:
        def changed(what: PageChange, changed_pages: Pages, owner: str) -> None:
            tick, now_us = self._device.tick(), self._device.now_us
            number = self.page_sets.intern(changed_pages)
            self._probes.emit(PageEvent(what, self._pools[place].tier, number, owner, tick, now_us))

        return PageAllocator(
            pages, self._config.free_list, changed, on_double_free=self._guards.decisions.on_double_free
        )

    def _storage(self, names: Names) -> StorageTier:
        return StorageTier(
            self._config,
            self._device,
            HostTier(self._pools["host"], self.tree, self.host_pages, self._allocate_host),
            names,
            self._guards,
            self._probes,
        )

    # -- pages ----------------------------------------------------------------------------------

    @property
    def available_pages(self) -> int:
        """Return device pages that are free or could be evicted now."""
        return self.device_pages.free_pages + self.tree.evictable_pages

    def allocate(self, pages: int, owner: str) -> Pages | None:
        """Return device pages, evicting cached prefixes as needed; None when there is no room now.

        Under `write_back` None may mean that evicted nodes are being backed up first: `poll` later.
        """
        short = pages - self.device_pages.free_pages - self._backing_up_pages
        if short > 0:
            self.evict_device(short)
        return self.device_pages.alloc(pages, owner)

    @property
    def _backing_up_pages(self) -> int:
        """Return pages of evicted nodes that come free once their write-back is acknowledged."""
        if self._config.write_policy != "write_back":
            return 0
        return sum(len(transfer.source) for flight in self._writes for transfer in flight.transfers)

    def touch(self, pages: Pages, step: int) -> None:
        """Note that `step` is the last enqueued step that may read or write these pages."""
        self._last_step[pages] = step

    def release(self, pages: Pages) -> None:
        """Give private pages back to the free list."""
        if len(pages):
            self.device_pages.free(pages)

    def evict_device(self, pages: int) -> None:
        """Evict least recently used prefixes from the device; locked ones stay."""
        write_back = self._config.write_policy == "write_back" and self._config.hicache
        evicted = evict_device(self.tree, pages, back_up=self._back_up if write_back else None)
        if len(evicted.device_pages):
            self.device_pages.free(evicted.device_pages)
            tokens = len(evicted.device_pages) * self._config.page_tokens
            self.evicted_tokens += tokens
            self._probes.emit(CacheEvent("evict_device", tokens, self._device.now_us))
        self.host_pages.free(evicted.host_pages)
        self._start_writing()

    def last_use(self, pages: Pages) -> Event | None:
        """Return the event behind the last enqueued step that may use these pages; None when it is long done."""
        return self._copier.step_done(self._last_used(pages))

    def step_enqueued(self, step: int, done: Event) -> None:
        """Note the event behind a step, so that page reuse can wait for exactly that step."""
        self._copier.step_enqueued(step, done)

    def _last_used(self, pages: Pages) -> int:
        """Return the last enqueued step that may use these pages, -1 for none."""
        return int(self._last_step[pages].max())

    # -- prefix hits ------------------------------------------------------------------------------

    def match(self, tokens: TokensLike) -> Match:
        """Return the longest cached prefix on both tiers, in whole pages."""
        return self.tree.match(tokens)

    def load_back(self, match: Match, request: str) -> Pages | None:
        """Queue the host part of a match for loading and return its device pages, or None without room.

        The nodes own their device pages at once; bytes arrive when `start_loading` has run.
        """
        ancestor, nodes = match.host_node.evicted_path()
        count = match.host_hit_pages
        if not self._config.hicache or count < LOAD_BACK_MIN_PAGES or not self._copier.ready:
            return None
        self.tree.pin(ancestor)
        self.tree.pin_host(match.host_node)
        target = self.allocate(count, f"load:{request}")
        if target is None:
            self.tree.unpin_host(match.host_node)
            self.tree.unpin(ancestor)
            return None
        parts = np.split(target, np.cumsum([node.num_pages for node in nodes])[:-1])
        for node, pages in zip(nodes, parts, strict=True):
            self.tree.set_device_pages(node, pages)
        self.tree.pin(match.host_node)
        self.tree.unpin(ancestor)
        prefix, source = np.concatenate((match.device_pages, target)), match.host_node.host_tail()
        first = self._guards.decisions.first_loaded(len(match.device_pages))
        count_loaded = min(len(prefix) - first, len(source))
        released = self._guards.decisions.release_host_at_enqueue()
        if released:
            self.tree.unpin_host(match.host_node)
        loaded = source[-count_loaded:], prefix[-count_loaded:]
        self._load_queue.append(Transfer(match.host_node, *loaded, host_pinned=not released))
        tokens = count * self._config.page_tokens
        self.load_back_tokens += tokens
        self._probes.emit(CacheEvent("load_back", tokens, self._device.now_us, request))
        return target

    def start_loading(self) -> LayerEvents | None:
        """Merge all queued load-backs into one operation and return the layer events that a batch of now has to
        wait for: those of the latest load that no batch waits for yet, behind which all earlier ones are done."""
        self._start_loading()
        events, self._unawaited = self._unawaited, None
        return events

    def _start_loading(self) -> None:
        if not self._load_queue:
            return
        queue, self._load_queue = self._load_queue, []
        source, target = _merged(queue)
        self._transfers += 1
        loading = self._copier.load(self._transfers, source, target, self._last_used(target))
        self._loads.append(Flight(queue, loading.done))
        self._unawaited = loading.events

    def prefetch_ended(self, prefetch: Prefetch | None) -> bool:
        """Return whether a request's wait for its prefetch is over, or never began."""
        return prefetch is None or self.storage is None or self.storage.ended(prefetch)

    # -- backing up -------------------------------------------------------------------------------

    def insert(self, tokens: TokensLike, pages: Pages, counted_pages: int = 0) -> tuple[Node, Pages]:
        """Put a computed prefix into the tree; return its node and the pages the tree did not take.

        The first `counted_pages` were inserted by the same request before: that is no second hit.
        """
        inserted = self.tree.insert(tokens, pages, counted_pages=counted_pages)
        self.device_pages.publish(inserted.new_pages, "tree")
        if self._config.hicache and self._config.write_policy != "write_back":
            threshold = 1 if self._config.write_policy == "write_through" else 2
            for node in inserted.node.due_for_backup(threshold):
                if not self._back_up(node):
                    break
            self._start_writing()
        return inserted.node, inserted.duplicate_pages

    def _back_up(self, node: Node) -> bool:
        """Queue a node for the host tier; False when the host or the write stream is full."""
        assert node.device_pages is not None
        if sum(flight.copies for flight in self._writes) >= WRITE_COPIES_MAX:
            self._probes.emit(LimitEvent("write_copies", self._device.now_us, {"max": WRITE_COPIES_MAX}))
            return False
        target = self._allocate_host(len(node.device_pages), f"node:{node.id}")
        if target is None:
            return False
        self.tree.set_host_pages(node, target)
        self.tree.pin(node)
        self.tree.pin_host(node)
        self._write_queue.append(Transfer(node, node.device_pages, target))
        return True

    def _allocate_host(self, pages: int, owner: str) -> Pages | None:
        """Return host pages, evicting others as needed; None when too many of them are in use."""
        if self._config.reclaim_host:
            self._free_host("reclaim_host", reclaim_host, pages)
        self._free_host("evict_host", evict_host, pages)
        return self.host_pages.alloc(pages, owner)

    def _free_host(self, what: str, take: Callable[[RadixTree, int], Pages], pages: int) -> None:
        """Free host pages that `take` takes off the tree, until `pages` are free or it has no more."""
        short = pages - self.host_pages.free_pages
        freed = take(self.tree, short) if short > 0 else NO_PAGES
        if len(freed):
            self.host_pages.free(freed)
            self._probes.emit(CacheEvent(what, len(freed) * self._config.page_tokens, self._device.now_us))

    def _start_writing(self) -> None:
        """Merge all queued back-ups into one operation on the write stream."""
        if not self._write_queue:
            return
        queue, self._write_queue = self._write_queue, []
        source, target = _merged(queue)
        self._transfers += 1
        writing = self._copier.write(self._transfers, source, target)
        self._writes.append(Flight(queue, writing.done, writing.copies))
        tokens = len(source) * self._config.page_tokens
        self._probes.emit(CacheEvent("write_back", tokens, self._device.now_us))

    # -- acks ---------------------------------------------------------------------------------------

    def poll(self) -> None:
        """Unlock the nodes of finished transfers, in the order they were started."""
        for flights in (self._loads, self._writes):
            while flights and flights[0].done.query():
                for transfer in flights.pop(0).transfers:
                    if self.storage is not None and flights is self._writes:
                        self.storage.back_up(transfer.leaf, transfer.target)
                    if transfer.host_pinned:
                        self.tree.unpin_host(transfer.leaf)
                    self.tree.unpin(transfer.leaf)
        if not self._loads:
            self._unawaited = None
        if self.storage is not None:
            self.storage.poll()

    async def drain(self) -> None:
        """Run every transfer to its end, queued load-backs included, and unlock its nodes."""
        self._start_loading()
        await self.settle()

    async def settle(self) -> None:
        """Wait for the transfers in flight and unlock their nodes; queued ones stay queued."""
        for flight in (*self._loads, *self._writes):
            await flight.done.synchronize("drain transfers")
        self.poll()
        if self.storage is not None:
            await self.storage.settle()

    @property
    def pending(self) -> bool:
        """Return whether any transfer is queued or in flight."""
        stored = self.storage is not None and self.storage.pending
        return bool(self._loads or self._writes or self._load_queue or self._write_queue or stored)

    def reset(self) -> None:
        """Forget all prefixes on all tiers. Nothing may run or be in flight."""
        assert not self.pending, "reset with transfers in flight"
        device_pages, host_pages = self.tree.reset()
        if len(device_pages):
            self.device_pages.free(device_pages)
        if len(host_pages):
            self.host_pages.free(host_pages)
        if self.storage is not None:
            self.storage.files.clear()

    def close(self) -> None:
        """Remove the files of a temporary storage tier."""
        if self.storage is not None:
            self.storage.files.close()


def _merged(queue: list[Transfer]) -> tuple[Pages, Pages]:
    """Return the pages of all transfers, source and target."""
    return np.concatenate([each.source for each in queue]), np.concatenate([each.target for each in queue])
