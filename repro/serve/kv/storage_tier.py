"""The third tier of HiCache: files below the host pages, written behind a write-back and read ahead of a load-back.

    device pages ──write──> host pages ──backup stream──> files
         ^                     │  ^                          │
         └───────load──────────┘  └──────prefetch stream─────┘   an event behind each page

A new request is matched against the files too: pages there that continue its prefix are prefetched into host pages
while it waits, and become an evicted node, which is loaded back like any other. It waits PATIENCE_S at most; then
the pages that have arrived count. A page counts when all its components have arrived (`Decisions.page_restored`).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from repro.base.probe import Access, CacheEvent, Component, LimitEvent, Probes
from repro.serve.config import EngineConfig
from repro.serve.device.base import Commit, Device, Event, Recorder
from repro.serve.device.cost import PRESETS
from repro.serve.guards import Guards
from repro.serve.kv.page import PageAllocator
from repro.serve.kv.pool import COMPONENTS, KVPool, Names, Pages, Rows
from repro.serve.kv.radix.node import Node, TokenRun
from repro.serve.kv.radix.tree import RadixTree, TokensLike
from repro.serve.kv.storage import Key, PageFiles, page_keys, root_key

PATIENCE_S = 1.0  # longest wait of a request for its prefetch; the base of SGLang's prefetch timeout
PREFETCH_MIN_PAGES = 1  # SGLang's default is 256 tokens, here one page
STREAM_PAGES_MAX = 2048  # pages in one stream's queue: two operations each, and a stream takes 8,192
HOST_SHARE = 0.5  # prefetches fill at most this share of the host pages at once
NEARLY_US = 1e-3  # timers are in whole nanoseconds


@dataclass(frozen=True)
class HostTier:
    """The host tier as the storage below it uses it. `allocate` evicts other host pages as needed."""

    pool: KVPool
    tree: RadixTree
    pages: PageAllocator
    allocate: Callable[[int, str], Pages | None]  # (pages, owner)


@dataclass(eq=False)
class Prefetch:
    """Pages on their way from files to the host, the last ones of `tokens`, behind the node `anchor`.

    pages   [ the tree's, or given back | still this prefetch's ]
              0 .................. taken .......... len(pages)
    """

    tokens: TokenRun
    keys: list[Key]
    pages: Pages
    request: str
    anchor: Node | None  # host-pinned until the end; None where that node has no host copy
    deadline_us: float
    arrived: list[Event] = field(default_factory=list)  # one behind each page
    failed: list[set[Component]] = field(default_factory=list)  # components that were not read, one set for each page
    damaged: list[Key] = field(default_factory=list)
    taken: int = 0
    restored: int = 0  # taken pages that the tree did not have
    awaited: bool = True  # whether its request still waits for it


@dataclass(eq=False)
class Backup:
    """Pages on their way from the host to files; the path to `leaf` is host-pinned until the ack."""

    leaf: Node
    keys: list[Key]
    done: Event
    failed: set[Key] = field(default_factory=set)


class StorageTier:
    """Carries pages between the host tier and files. Raises UsageError for a folder that can't be used."""

    def __init__(
        self,
        config: EngineConfig,
        device: Device,
        host: HostTier,
        names: Names,
        guards: Guards,
        probes: Probes,
    ) -> None:
        self._config = config
        self._device = device
        self._host = host
        self._pool = host.pool
        self._tree = host.tree
        self._names = names
        self._guards = guards
        self._probes = probes
        self._cost = PRESETS[config.cost]
        self._reads = device.stream("prefetch")
        self._writes = device.stream("backup")
        widths = [0 if values is None else values.shape[-1] for values in self._pool.values.values()]
        kind = (config.model, config.numerics, config.checksums, config.speculative_drafts > 0, config.page_tokens)
        self._root = root_key(repr((*kind, self._pool.layers, *widths)))
        folder = Path(config.storage_folder) if config.storage_folder else None
        self.files = PageFiles(folder, self._pool, config.storage_pages)
        self._prefetches: list[Prefetch] = []  # oldest first
        self._backups: list[Backup] = []
        self._transfers = 0

    # -- backing up -------------------------------------------------------------------------------------

    def back_up(self, leaf: Node, pages: Pages) -> None:
        """Queue host pages that were just written, the last ones of the path to `leaf`, unless they are stored.

        The path must be host-pinned now; it stays so until the ack.
        """
        keys = page_keys(self._root, leaf.tokens(), self._config.page_tokens)[-len(pages) :]
        under_way = {key for backup in self._backups for key in backup.keys}
        pairs = zip(keys, pages.tolist(), strict=True)
        new = [(key, page) for key, page in pairs if key not in under_way and key not in self.files]
        if not new:
            return
        if sum(len(backup.keys) for backup in self._backups) + len(new) > STREAM_PAGES_MAX:
            self._probes.emit(LimitEvent("backup_pages", self._device.now_us, {"max": STREAM_PAGES_MAX}))
            return
        self._tree.pin_host(leaf)
        self._transfers += 1
        backup = Backup(leaf, [key for key, _ in new], self._device.event(f"backup{self._transfers}"))
        for key, page in new:
            for component in COMPONENTS:
                self._enqueue_write(backup, key, page, component)
        backup.done.record(self._writes)
        self._backups.append(backup)

    def _enqueue_write(self, backup: Backup, key: Key, page: int, component: Component) -> None:
        touched = self._touched(False, component, page)
        decision = self._probes.hit("storage.file", "backup")
        kind = decision.kind if decision is not None else ""

        def body(recorder: Recorder) -> Commit:
            rows = self._pool.read_page(component, page)
            for access in touched:
                recorder.access(access)
            return lambda: self._write(backup, key, component, rows, kind)

        duration_us = self._cost.storage_write_us(self._pool.layers * self._config.page_tokens, component)
        self._writes.enqueue("storage.write", body, duration_us=duration_us, step=self._transfers, declared=touched)

    def _write(self, backup: Backup, key: Key, component: Component, rows: Rows, fault: str) -> None:
        """Write a file; a disk that is full, or fails, costs the page its place there and nothing else."""
        try:
            if fault == "fail":
                raise OSError("no space left on the device")
            self.files.write(key, component, rows, torn=fault == "tear")
        except OSError:
            backup.failed.add(key)

    # -- prefetching ------------------------------------------------------------------------------------

    def prefetch(self, tokens: TokensLike, request: str) -> Prefetch | None:
        """Start to read pages that continue the cached prefix of these tokens; None without any, or without room."""
        match = self._tree.match(tokens)
        cached = len(match.device_pages) + match.host_hit_pages
        run = np.asarray(tokens, np.int64)
        keys = page_keys(self._root, run, self._config.page_tokens)[cached:]
        keys = keys[: self.files.leading(keys)]
        if len(keys) < PREFETCH_MIN_PAGES or not self._has_room(len(keys)):
            return None
        anchor = match.host_node if match.host_node.backed_up else None
        if anchor is not None:
            self._tree.pin_host(anchor)
        pages = self._host.allocate(len(keys), f"prefetch:{request}")
        if pages is None:
            if anchor is not None:
                self._tree.unpin_host(anchor)
            return None
        run = run[: (cached + len(keys)) * self._config.page_tokens]
        deadline_us = self._device.now_us + PATIENCE_S * 1e6
        self._transfers += 1
        prefetch = Prefetch(run, keys, pages, request, anchor, deadline_us)
        for place in range(len(keys)):
            self._enqueue_page(prefetch, place)
        self._prefetches.append(prefetch)
        return prefetch

    def _has_room(self, pages: int) -> bool:
        """Return whether that many more pages may be on their way to the host."""
        most = min(STREAM_PAGES_MAX, int(HOST_SHARE * self._config.host_pages))
        if sum(len(prefetch.pages) for prefetch in self._prefetches) + pages <= most:
            return True
        self._probes.emit(LimitEvent("prefetch_pages", self._device.now_us, {"max": most}))
        return False

    def _enqueue_page(self, prefetch: Prefetch, place: int) -> None:
        prefetch.failed.append(set())
        for component in COMPONENTS:
            self._enqueue_read(prefetch, place, component)
        arrived = self._device.event(f"prefetch{self._transfers}.page{place}")
        arrived.record(self._reads)
        prefetch.arrived.append(arrived)

    def _enqueue_read(self, prefetch: Prefetch, place: int, component: Component) -> None:
        key, page = prefetch.keys[place], int(prefetch.pages[place])
        touched = self._touched(True, component, page)
        unread = self._probes.hit(f"storage.{component}", "prefetch") is not None

        def body(recorder: Recorder) -> Commit | None:
            rows = None if unread else self._read(key, component)
            if rows is None:
                prefetch.failed[place].add(component)
                prefetch.damaged += [] if unread else [key]
                return None
            for access in touched:
                recorder.access(access)
            return lambda: self._pool.write_page(component, page, rows)

        self._reads.enqueue(
            "storage.read",
            body,
            duration_us=self._cost.storage_read_us(self._pool.layers * self._config.page_tokens, component),
            step=self._transfers,
            requests=(prefetch.request,),
            declared=touched,
        )

    def _read(self, key: Key, component: Component) -> Rows | None:
        """Return the rows of a file, None for a miss. Taint of another run names no bad read of this one."""
        rows = self.files.read(key, component)
        if rows is None or key in self.files.written or not rows.taint.any():
            return rows
        return rows._replace(taint=np.where(rows.taint != 0, self._names.bad_read(), 0).astype(np.int32))

    def ended(self, prefetch: Prefetch) -> bool:
        """Return whether a request's wait for its prefetch is over; all arrived pages are in the tree then."""
        if prefetch.awaited and self._device.now_us > prefetch.deadline_us - NEARLY_US:
            arrived = 0
            while arrived < len(prefetch.arrived) and prefetch.arrived[arrived].query():
                arrived += 1
            self._probes.emit(LimitEvent("prefetch_wait", self._device.now_us, {"arrived": arrived}))
            prefetch.awaited = False
            self._take(prefetch, arrived)
        return not prefetch.awaited

    def _take(self, prefetch: Prefetch, arrived: int) -> None:
        """Give the tree the whole ones of the leading pages that have arrived."""
        count = prefetch.taken
        while count < arrived and self._guards.decisions.page_restored(frozenset(prefetch.failed[count])):
            count += 1
        if count == prefetch.taken:
            return
        size = self._config.page_tokens
        given = prefetch.pages[prefetch.taken : count]
        tokens = prefetch.tokens[: len(prefetch.tokens) - (len(prefetch.pages) - count) * size]
        left = self._tree.insert_host(tokens, given)
        if len(left):
            self._host.pages.free(left)
        prefetch.taken = count
        restored = len(given) - len(left)
        prefetch.restored += restored
        if restored:
            self._probes.emit(CacheEvent("prefetch", restored * size, self._device.now_us, prefetch.request))

    # -- acks -------------------------------------------------------------------------------------------

    @property
    def pending(self) -> bool:
        """Return whether anything is on its way."""
        return bool(self._prefetches or self._backups)

    @property
    def patience_s(self) -> float | None:
        """Return how long until the first request stops to wait for its prefetch; None when none waits."""
        left_us = [prefetch.deadline_us - self._device.now_us for prefetch in self._prefetches if prefetch.awaited]
        return min((each / 1e6 for each in left_us if each > NEARLY_US), default=None)

    def poll(self) -> None:
        """Acknowledge ended transfers, in the order of their start."""
        while self._prefetches and self._prefetches[0].arrived[-1].query():
            self._close_prefetch(self._prefetches.pop(0))
        while self._backups and self._backups[0].done.query():
            self._close_backup(self._backups.pop(0))

    def _close_prefetch(self, prefetch: Prefetch) -> None:
        self._take(prefetch, len(prefetch.pages))
        prefetch.awaited = False
        rest = prefetch.pages[prefetch.taken :]
        if len(rest):
            self._host.pages.free(rest)
            tokens = len(rest) * self._config.page_tokens
            self._probes.emit(CacheEvent("storage_miss", tokens, self._device.now_us, prefetch.request))
        for key in prefetch.damaged:
            self.files.discard(key)
        if prefetch.anchor is not None:
            self._tree.unpin_host(prefetch.anchor)

    def _close_backup(self, backup: Backup) -> None:
        self._tree.unpin_host(backup.leaf)
        size, now_us = self._config.page_tokens, self._device.now_us
        for key in reversed(backup.keys):
            if key in backup.failed:
                self.files.discard(key)
            else:
                self.files.admit(key)
        failed = len(backup.failed)
        stored = len(backup.keys) - failed
        if stored:
            self._probes.emit(CacheEvent("store", stored * size, now_us))
        if failed:
            self._probes.emit(CacheEvent("storage_full", failed * size, now_us))

    async def prefetched(self) -> None:
        """Wait for the oldest prefetch and take it in; returns at once without one."""
        if self._prefetches:
            await self._prefetches[0].arrived[-1].synchronize("what continues a prefix in storage has arrived")
        self.poll()

    async def settle(self) -> None:
        """Wait for everything on its way and take it in."""
        while self.pending:
            await self.prefetched()
            for backup in self._backups[:1]:
                await backup.done.synchronize("drain backups")
            self.poll()

    def _touched(self, write: bool, component: Component, page: int) -> tuple[Access, ...]:
        pages = self._names.page_sets.intern(np.array([page], np.int32))
        tier = self._pool.tier
        return tuple(Access(write, tier, component, layer, pages, "") for layer in self._pool.layer_numbers)
