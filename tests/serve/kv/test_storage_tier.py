"""The storage tier: what is written behind a write-back, what comes back ahead of a load-back, and what never does."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repro.serve.kv.storage_tier
from repro.base.probe import CacheEvent, LimitEvent
from repro.fault.kinds import KINDS
from repro.fault.plan import Fault, When
from repro.serve.guards import Guards
from repro.serve.kv.pool import COMPONENTS
from repro.serve.kv.radix.eviction import evict_host
from repro.serve.kv.radix.invariants import check_tree
from repro.serve.kv.radix.node import Node
from repro.serve.kv.storage_tier import PATIENCE_S, Prefetch, StorageTier
from tests.serve.engine.builders import PAGE, delay, prompt
from tests.serve.kv.test_tiers import LAYERS, Tiers


class Stored(Tiers):
    """A cache with storage for 16 pages below its 8 host pages."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**({"storage_pages": 16} | more))

    @property
    def storage(self) -> StorageTier:
        assert self.cache.storage is not None
        return self.cache.storage

    def pages_of(self, what: str) -> int:
        """Return the pages of all cache events of a kind."""
        return sum(e.tokens for e in self.events if isinstance(e, CacheEvent) and e.what == what) // PAGE

    async def in_storage_only(self, family: int, pages: int) -> Node:
        """Return a node, deleted by now, whose pages are in files and on no other tier."""
        node = await self.on_host_only(family, pages)
        self.cache.host_pages.free(evict_host(self.cache.tree, 8))
        assert node.parent is None
        return node

    def prefetch(self, family: int, pages: int) -> Prefetch | None:
        return self.storage.prefetch(prompt(family, pages * PAGE), f"r{family}")

    def whole(self, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a program; afterwards no page and no pin is lost, and no file is left behind."""
        try:
            self.run(main)
            check_tree(self.cache.tree)
            _, host_pages = self.cache.tree.reset()  # nothing is pinned
            assert not self.cache.pending and len(host_pages) == self.cache.host_pages.used_pages
        finally:
            self.cache.close()

    def told(self, what: str) -> list[int]:
        """Return the pages of each cache event of a kind."""
        return [event.tokens // PAGE for event in self.events if isinstance(event, CacheEvent) and event.what == what]


def fails(at: str, kind: str = "fail", **when: Any) -> Fault:
    return Fault(at, KINDS[kind](), When(**when))


# -- both ways ------------------------------------------------------------------------------------------------


def test_what_was_written_to_the_host_is_written_to_files_and_pinned_there_until_then() -> None:
    tiers = Stored()

    async def main() -> None:
        node = tiers.insert(1, 3)
        while not tiers.ops("writeback.copy_layer") or tiers.cache._writes:
            await tiers.device.settle()
            tiers.device.charge(10)
            tiers.cache.poll()
        assert (tiers.pinned, node.host_ref) == (0, 1) and len(tiers.storage.files) == 0
        await tiers.cache.drain()
        assert node.host_ref == 0 and len(tiers.storage.files) == 3

    tiers.whole(main)
    writes = tiers.ops("storage.write")
    assert [op.accesses[0].component for op in writes] == ["latent", "index"] * 3
    assert all([access.layer for access in op.accesses] == list(range(LAYERS)) for op in writes)
    assert writes[0].start_us >= tiers.writes[-1].end_us
    assert tiers.told("store") == [3]


def test_what_is_stored_already_is_not_written_again() -> None:
    tiers = Stored()

    async def main() -> None:
        await tiers.in_storage_only(1, 2)
        tiers.insert(1, 3)
        await tiers.cache.drain()

    tiers.whole(main)
    assert tiers.told("store") == [2, 1]


def test_a_prefix_that_left_the_host_is_prefetched_and_loaded_back_with_its_bytes() -> None:
    tiers = Stored()

    async def main() -> None:
        await tiers.in_storage_only(1, 3)
        tiers.write("host", np.arange(8, dtype=np.int32), 9)
        tiers.write("device", np.arange(8, dtype=np.int32), 9)
        prefetch = tiers.prefetch(1, 3)
        assert prefetch is not None and not tiers.storage.ended(prefetch)
        await tiers.storage.prefetched()
        assert tiers.storage.ended(prefetch) and prefetch.restored == 3
        match = tiers.cache.match(prompt(1, 3 * PAGE))
        assert (len(match.device_pages), match.host_hit_pages) == (0, 3)
        pages = tiers.cache.load_back(match, "r1")
        tiers.cache.start_loading()
        await tiers.cache.drain()
        assert tiers.holds("host", match.host_node.host_pages, 1) and tiers.holds("device", pages, 1)

    tiers.whole(main)
    reads = tiers.ops("storage.read")
    assert [op.accesses[0].component for op in reads] == ["latent", "index"] * 3
    assert tiers.loads[0].start_us >= reads[-1].end_us


def test_only_what_continues_the_cached_prefix_is_prefetched() -> None:
    tiers = Stored()

    async def main() -> None:
        await tiers.in_storage_only(1, 4)
        tiers.insert(1, 2)
        await tiers.cache.drain()
        prefetch = tiers.prefetch(1, 4)
        assert prefetch is not None and len(prefetch.pages) == 2
        assert prefetch.anchor is not None and prefetch.anchor.host_ref == 1
        await tiers.storage.prefetched()
        match = tiers.cache.match(prompt(1, 4 * PAGE))
        assert (len(match.device_pages), match.host_hit_pages) == (2, 2)
        assert tiers.prefetch(1, 4) is None and tiers.prefetch(2, 4) is None

    tiers.whole(main)


def test_another_run_finds_what_is_in_a_named_folder(tmp_path: Path) -> None:
    first, second = (Stored(storage_folder=str(tmp_path)) for _ in range(2))

    async def write() -> None:
        await first.in_storage_only(1, 3)

    async def read() -> None:
        prefetch = tiers.prefetch(1, 3)
        assert prefetch is not None
        await tiers.storage.prefetched()
        assert tiers.holds("host", tiers.cache.match(prompt(1, 3 * PAGE)).host_node.host_pages, 1)

    first.whole(write)
    second.cache.close()
    tiers = Stored(storage_folder=str(tmp_path))
    tiers.whole(read)
    for other in ({"numerics": "tensors"}, {"model": "elsewhere"}):
        tiers = Stored(storage_folder=str(tmp_path), **other)
        assert tiers.prefetch(1, 3) is None, "pages of another kind"


def test_taint_of_another_run_names_no_bad_read_of_this_one(tmp_path: Path) -> None:
    first, found = Stored(storage_folder=str(tmp_path)), []

    async def write() -> None:
        own = first.cache.allocate(1, "r")
        assert own is not None
        first.compute_pages(own, 1)
        await first.compute.synchronize("the page is there")
        for component in COMPONENTS:
            first.pools["device"].taint[component][:, own] = 7
        first.cache.insert(prompt(1, PAGE), own)

    async def read() -> None:
        assert second.prefetch(1, 1) is not None
        await second.storage.prefetched()
        [page] = second.cache.match(prompt(1, PAGE)).host_node.host_pages.tolist()  # type: ignore[union-attr]
        found.extend(np.unique(second.pools["host"].taint[component][:, page]).tolist() for component in COMPONENTS)

    first.whole(write)
    second = Stored(storage_folder=str(tmp_path))
    second.whole(read)
    assert found == [[1], [2]] and second.pools["host"].tainted


# -- what does not come back ------------------------------------------------------------------------------------


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_page_of_which_a_component_was_not_read_is_not_restored_nor_any_behind_it(component: str) -> None:
    tiers = Stored(faults=(fails(f"storage.{component}", skip=1, times=1),))

    async def main() -> None:
        await tiers.in_storage_only(1, 4)
        prefetch = tiers.prefetch(1, 4)
        assert prefetch is not None
        await tiers.storage.prefetched()
        assert prefetch.restored == 1 and tiers.cache.match(prompt(1, 4 * PAGE)).host_hit_pages == 1
        again = tiers.prefetch(1, 4)
        assert again is not None and len(again.pages) == 3, "the files were whole"

    tiers.whole(main)
    assert tiers.told("storage_miss") == [3] and tiers.told("prefetch") == [1, 3]


def test_without_its_guard_a_page_keeps_the_index_keys_of_its_previous_owner() -> None:
    guards = Guards().replaced(page_restored=lambda failed: "latent" not in failed)
    tiers = Stored(guards=guards, faults=(fails("storage.index", skip=1, times=1),))

    async def main() -> None:
        await tiers.in_storage_only(1, 2)
        tiers.write("host", np.arange(8, dtype=np.int32), 9)
        prefetch = tiers.prefetch(1, 2)
        assert prefetch is not None
        await tiers.storage.prefetched()
        assert tiers.holds_layer("host", prefetch.pages, 1, "latent", 0)
        assert tiers.holds_layer("host", prefetch.pages[1:], 9, "index", 0)

    tiers.whole(main)


def test_a_torn_file_is_a_miss_once_and_then_forgotten() -> None:
    tiers = Stored(faults=(fails("storage.file", "tear", skip=3, times=1),))

    async def main() -> None:
        await tiers.in_storage_only(1, 3)
        assert len(tiers.storage.files) == 3, "nobody was told"
        assert tiers.prefetch(1, 3) is not None
        await tiers.storage.prefetched()
        assert len(tiers.storage.files) == 2 and tiers.pages_of("storage_miss") == 2
        tiers.insert(1, 3)
        await tiers.cache.drain()
        assert len(tiers.storage.files) == 3, "written again"

    tiers.whole(main)


def test_a_disk_that_is_full_costs_the_page_its_place_there_and_is_counted() -> None:
    tiers = Stored(faults=(fails("storage.file", skip=3, times=1),))

    async def main() -> None:
        node = await tiers.on_host_only(1, 3)
        assert node.backed_up and tiers.pages_of("storage_full") == 1
        assert len(tiers.storage.files) == 2
        tiers.cache.host_pages.free(evict_host(tiers.cache.tree, 8))
        prefetch = tiers.prefetch(1, 3)
        assert prefetch is not None and len(prefetch.pages) == 1

    tiers.whole(main)
    assert tiers.told("storage_full") == [1] and tiers.told("store") == [2]


def test_a_folder_that_goes_away_makes_misses_and_no_error(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    tiers = Stored(storage_folder=str(folder))

    async def main() -> None:
        await tiers.in_storage_only(1, 2)
        folder.rename(tmp_path / "elsewhere")
        assert tiers.prefetch(1, 2) is not None
        await tiers.storage.prefetched()
        tiers.insert(2, 2)
        await tiers.cache.drain()
        assert (tiers.pages_of("storage_miss"), tiers.pages_of("storage_full"), len(tiers.storage.files)) == (2, 2, 0)

    tiers.whole(main)


def test_a_page_that_is_evicted_from_storage_between_its_two_reads_is_a_miss() -> None:
    tiers = Stored(faults=(delay("storage.read", 5000, skip=1, times=1),))

    async def main() -> None:
        await tiers.in_storage_only(1, 1)
        prefetch = tiers.prefetch(1, 1)
        assert prefetch is not None
        while not tiers.ops("storage.read"):
            await asyncio.sleep(1e-5)
        tiers.storage.files.discard(prefetch.keys[0])
        await tiers.storage.prefetched()
        assert prefetch.failed == [{"index"}] and prefetch.restored == 0

    tiers.whole(main)


# -- who waits, and for how long -----------------------------------------------------------------------------------


def test_after_a_second_what_has_arrived_counts_and_the_rest_comes_later() -> None:
    tiers = Stored(faults=(delay("storage.read", 3e6, skip=2, times=1),))

    async def main() -> None:
        await tiers.in_storage_only(1, 3)
        prefetch = tiers.prefetch(1, 3)
        assert prefetch is not None and tiers.storage.patience_s == PATIENCE_S
        await asyncio.sleep(PATIENCE_S / 2)
        assert not tiers.storage.ended(prefetch)
        await asyncio.sleep(PATIENCE_S / 2)
        assert tiers.storage.patience_s is None and tiers.storage.ended(prefetch)
        assert tiers.cache.match(prompt(1, 3 * PAGE)).host_hit_pages == 1
        assert len(evict_host(tiers.cache.tree, 1)) == 1, "nobody holds what has been taken"
        tiers.cache.host_pages.free(prefetch.pages[:1])
        await tiers.storage.prefetched()
        assert tiers.cache.match(prompt(1, 3 * PAGE)).host_hit_pages == 0, "its beginning is gone"

    tiers.whole(main)
    [limit] = [event for event in tiers.events if isinstance(event, LimitEvent)]
    assert limit.what == "prefetch_wait" and limit.detail == {"arrived": 1}


def test_what_somebody_else_has_computed_meanwhile_is_given_back() -> None:
    tiers = Stored()

    async def main() -> None:
        await tiers.in_storage_only(1, 3)
        prefetch = tiers.prefetch(1, 3)
        assert prefetch is not None
        tiers.insert(1, 2)
        await tiers.storage.prefetched()
        assert prefetch.restored == 1
        match = tiers.cache.match(prompt(1, 3 * PAGE))
        assert (len(match.device_pages), match.host_hit_pages) == (2, 1)

    tiers.whole(main)


def test_without_room_on_the_host_nothing_is_prefetched_and_nothing_stays_pinned() -> None:
    tiers = Stored(host_pages=4)

    async def main() -> None:
        await tiers.in_storage_only(1, 2)
        await tiers.in_storage_only(2, 2)
        node = await tiers.on_host_only(3, 3)
        tiers.cache.tree.pin_host(node)
        assert tiers.prefetch(1, 2) is None
        tiers.cache.tree.unpin_host(node)
        assert tiers.prefetch(1, 2) is not None
        assert tiers.prefetch(2, 2) is None, "half of the host is on its way already"

    tiers.whole(main)
    assert [event.what for event in tiers.events if isinstance(event, LimitEvent)] == ["prefetch_pages"]


def test_a_backup_stream_that_lags_takes_no_more_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repro.serve.kv.storage_tier, "STREAM_PAGES_MAX", 2)
    tiers = Stored()

    async def main() -> None:
        tiers.insert(1, 2)
        tiers.insert(2, 1)
        await tiers.cache.drain()

    tiers.whole(main)
    assert tiers.told("store") == [2]
    assert [event.what for event in tiers.events if isinstance(event, LimitEvent)] == ["backup_pages"]


def test_a_reset_forgets_the_files_too() -> None:
    tiers = Stored()

    async def main() -> None:
        await tiers.in_storage_only(1, 2)
        tiers.cache.reset()
        assert len(tiers.storage.files) == 0 and tiers.prefetch(1, 2) is None

    tiers.whole(main)
