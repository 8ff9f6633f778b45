"""HiCache: who owns which page when, in which order the copies run, and who waits for whom (FACTS 2)."""

import asyncio
from collections.abc import Callable, Coroutine
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

import repro.serve.kv.tiers
from repro.base.clock import run_virtual
from repro.base.probe import CacheEvent, Component, Event, LimitEvent, Op, PageEvent
from repro.fault.injector import Injector
from repro.fault.plan import Fault
from repro.serve.device.cost import PRESETS
from repro.serve.device.sim import SimDevice
from repro.serve.guards import Guards
from repro.serve.kv.copier import COPY_GROUPS_MAX, TierCopier
from repro.serve.kv.loadback import RING_SLOTS, LayerEvents
from repro.serve.kv.pool import COMPONENTS, KVPool, Names, Pages, PageSets, Place, Rows
from repro.serve.kv.radix.invariants import check_tree
from repro.serve.kv.radix.node import Node
from repro.serve.kv.radix.tree import RadixTree
from repro.serve.kv.tiers import HiCache
from tests.serve.engine.builders import PAGE, delay, make_config, never, prompt

LAYERS = 3
WIDTHS: dict[Component, int] = {"latent": 2, "index": 3}


class Tiers:
    """A cache of 8 device pages, and a host that computes pages by operations on the compute stream."""

    def __init__(self, *, faults: tuple[Fault, ...] = (), guards: Guards | None = None, **config: Any) -> None:
        self.events: list[Event] = []
        probes = Injector(faults, 0, (self.events.append,))
        self.device = SimDevice(probes)
        self.compute = self.device.stream("compute")
        self.config = make_config(**({"device_pages": 8, "host_pages": 8, "context_tokens": 16} | config))
        sizes: dict[Place, int] = {"device": self.config.device_pages, "host": self.config.host_pages}
        self.pools = {tier: KVPool(tier, LAYERS, pages, PAGE, WIDTHS) for tier, pages in sizes.items()}
        names, guards = Names(PageSets(probes)), guards or Guards()
        cost = PRESETS["h100-glm5"]
        copier = TierCopier(self.config, self.device, self.compute, self.pools, names, guards, cost, LAYERS)
        self.cache = HiCache(self.config, self.device, copier, self.pools, names, guards, probes)
        self.step = 0

    def run(self, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a host program to its end, then everything that it enqueued."""

        async def whole() -> None:
            await main()
            await self.cache.drain()
            await self.compute.synchronize("the end")

        run_virtual(whole(), self.device)

    def compute_pages(self, pages: Pages, mark: int, us: float = 10.0) -> None:
        """Enqueue a step that writes `mark` into pages, and tell the cache of it."""

        def body(_: object) -> Callable[[], None]:
            return lambda: self.write("device", pages, mark)

        self.step += 1
        self.compute.enqueue("forward.store", body, duration_us=us, step=self.step)
        done = self.device.event(f"step{self.step}")
        done.record(self.compute)
        self.cache.step_enqueued(self.step, done)
        self.cache.touch(pages, self.step)

    def write(self, tier: Place, pages: Pages, mark: int) -> None:
        for layer in range(LAYERS):
            for component in COMPONENTS:
                values = torch.full((len(pages), PAGE, WIDTHS[component]), self.value(mark, component, layer))
                rows = Rows(
                    values, np.full((len(pages), PAGE), mark, np.uint64), np.zeros((len(pages), PAGE), np.int32)
                )
                self.pools[tier].write(component, layer, pages, rows)

    @staticmethod
    def value(mark: int, component: Component, layer: int) -> float:
        return 100.0 * mark + 10 * layer + COMPONENTS.index(component)

    def holds(self, tier: Place, pages: Pages | None, mark: int) -> bool:
        """Return whether all rows of pages are those of `mark`, bytes and stamps, on every layer."""
        assert pages is not None
        return all(self.holds_layer(tier, pages, mark, c, layer) for c in COMPONENTS for layer in range(LAYERS))

    def holds_layer(self, tier: Place, pages: Pages, mark: int, component: Component, layer: int) -> bool:
        rows = self.pools[tier].read(component, layer, pages)
        assert rows.values is not None
        return bool((rows.values == self.value(mark, component, layer)).all() and (rows.stamps == mark).all())

    def insert(self, family: int, pages: int, *, us: float = 10.0) -> Node:
        """Compute and cache the first pages of a prompt, as a request does that then ends."""
        own = self.cache.allocate(pages, f"r{family}")
        assert own is not None
        self.compute_pages(own, family, us)
        node, duplicates = self.cache.insert(prompt(family, pages * PAGE), own)
        self.cache.release(duplicates)
        return node

    async def on_host_only(self, family: int, pages: int) -> Node:
        """Return a node that was backed up and then evicted from the device."""
        node = self.insert(family, pages)
        await self.cache.drain()
        self.cache.evict_device(self.cache.device_pages.used_pages)
        assert node.backed_up and not node.resident
        return node

    def load(self, family: int, pages: int) -> Pages | None:
        return self.cache.load_back(self.cache.match(prompt(family, pages * PAGE)), f"r{family}")

    def ops(self, name: str) -> list[Op]:
        return [event for event in self.events if isinstance(event, Op) and event.name == name]

    @property
    def loads(self) -> list[Op]:
        return self.ops("loadback.copy_layer")

    @property
    def writes(self) -> list[Op]:
        return self.ops("writeback.copy_layer")

    @property
    def pinned(self) -> int:
        return self.cache.tree.protected_pages

    def places(self, ops: list[Op]) -> list[tuple[str, int]]:
        return [(op.accesses[0].component, op.layer) for op in ops]


LAYER_BY_LAYER = [(component, layer) for layer in range(LAYERS) for component in ("latent", "index")]


# -- load-back --------------------------------------------------------------------------------------------------------


def test_a_node_owns_its_device_pages_before_any_byte_has_arrived() -> None:
    tiers = Tiers()

    async def main() -> None:
        node = await tiers.on_host_only(1, 2)
        tiers.write("device", np.arange(8, dtype=np.int32), 9)  # what former owners left
        pages = tiers.load(1, 2)
        assert pages is not None and node.resident and node.device_pages is not None
        assert node.device_pages.tolist() == pages.tolist()
        assert tiers.holds("device", pages, 9) and not tiers.loads
        again = tiers.cache.match(prompt(1, 2 * PAGE))
        assert again.host_hit_pages == 0 and again.device_pages.tolist() == pages.tolist()
        tiers.cache.start_loading()
        await tiers.cache.drain()
        assert tiers.holds("device", pages, 1) and tiers.holds("host", node.host_pages, 1)

    tiers.run(main)


def test_each_layer_is_latents_then_index_keys_in_groups_then_its_event() -> None:
    tiers = Tiers(host_pages=16)
    reached: list[tuple[int, list[bool]]] = []

    async def main() -> None:
        await tiers.on_host_only(1, 3)  # groups of two pages: two copies a layer and component
        assert tiers.load(1, 3) is not None
        events = tiers.cache.start_loading()
        assert events is not None
        for layer in range(LAYERS):
            await events.layer_done(layer).synchronize("the test looks")
            reached.append((len(tiers.loads), [events.layer_done(each).query() for each in range(LAYERS)]))

    tiers.run(main)
    assert tiers.places(tiers.loads) == [place for place in LAYER_BY_LAYER for _ in range(2)]
    assert reached == [(4, [True, False, False]), (8, [True, True, False]), (12, [True, True, True])]
    assert all(one.end_us <= other.start_us for one, other in pairwise(tiers.loads))


def test_the_first_copy_waits_for_the_last_step_that_used_the_pages_and_no_other_copy_waits() -> None:
    tiers = Tiers()

    async def main() -> None:
        await tiers.on_host_only(1, 2)
        pages = tiers.cache.allocate(8, "running")
        assert pages is not None
        tiers.compute_pages(pages, 7, us=5000)  # step 2, in flight
        tiers.cache.release(pages)
        tiers.compute_pages(np.empty(0, np.int32), 8, us=5000)  # step 3 uses none of them
        assert tiers.load(1, 2) is not None
        tiers.cache.start_loading()

    tiers.run(main)
    first, *others = tiers.loads
    assert [edge.source for edge in first.after] == [("compute", 1)]
    assert tiers.ops("forward.store")[1].end_us <= first.start_us < tiers.ops("forward.store")[2].end_us
    assert not any(op.after for op in others)


def test_without_its_guard_a_load_overwrites_pages_that_a_step_still_uses() -> None:
    tiers = Tiers(guards=Guards().replaced(before_page_reuse=never))
    found: list[bool] = []

    async def main() -> None:
        await tiers.on_host_only(1, 2)
        pages = tiers.cache.allocate(8, "running")
        assert pages is not None
        tiers.compute_pages(pages, 7, us=50_000)
        tiers.cache.release(pages)
        loaded = tiers.load(1, 2)
        tiers.cache.start_loading()
        await tiers.cache.drain()
        await tiers.compute.synchronize("the step that ended last")
        assert loaded is not None
        found.append(tiers.holds("device", loaded, 1))

    tiers.run(main)
    assert found == [False]


def test_pages_that_no_step_has_used_or_whose_step_is_long_over_are_loaded_at_once() -> None:
    tiers = Tiers()

    async def main() -> None:
        await tiers.on_host_only(1, 1)
        for _ in range(12):
            tiers.compute_pages(np.empty(0, np.int32), 0)
        await tiers.compute.synchronize("old steps end")
        tiers.compute_pages(np.empty(0, np.int32), 0, us=9000)
        assert tiers.load(1, 1) is not None
        tiers.cache.start_loading()

    tiers.run(main)
    assert not any(op.after for op in tiers.loads)


def test_queued_load_backs_merge_into_one_operation() -> None:
    tiers = Tiers(host_pages=16)

    async def main() -> None:
        one, other = tiers.insert(1, 2), tiers.insert(2, 3)
        await tiers.cache.drain()
        tiers.cache.evict_device(8)
        assert tiers.load(1, 2) is not None and tiers.load(2, 3) is not None
        assert tiers.cache.start_loading() is not None and tiers.cache.start_loading() is None
        await tiers.cache.drain()
        assert tiers.holds("device", one.device_pages, 1) and tiers.holds("device", other.device_pages, 2)

    tiers.run(main)
    assert len({op.step for op in tiers.loads}) == 1
    assert tiers.places(tiers.loads) == [place for place in LAYER_BY_LAYER for _ in range(3)]  # 5 pages


def test_a_path_of_several_evicted_nodes_is_loaded_top_down_from_its_resident_ancestor() -> None:
    tiers = Tiers(host_pages=16)

    async def main() -> None:
        tiers.insert(1, 2)
        tiers.insert(1, 3)
        tiers.insert(1, 5)
        await tiers.cache.drain()
        tiers.cache.evict_device(1)  # the leaf of two pages
        tiers.cache.evict_device(1)
        match = tiers.cache.match(prompt(1, 5 * PAGE))
        assert (len(match.device_pages), match.host_hit_pages) == (2, 3)
        pages = tiers.cache.load_back(match, "r")
        assert pages is not None
        tiers.cache.start_loading()
        await tiers.cache.drain()
        whole = tiers.cache.match(prompt(1, 5 * PAGE))
        assert whole.host_hit_pages == 0 and whole.device_pages[2:].tolist() == pages.tolist()

    tiers.run(main)


def test_the_ring_takes_a_fourth_load_back_only_when_the_first_is_done() -> None:
    tiers = Tiers(host_pages=16)

    async def main() -> None:
        for family in range(4):
            tiers.insert(family, 1)
        await tiers.cache.drain()
        tiers.cache.evict_device(8)
        started: list[LayerEvents | None] = []
        for family in range(RING_SLOTS):
            assert tiers.load(family, 1) is not None
            started.append(tiers.cache.start_loading())
        assert RING_SLOTS == 3 and len({id(events) for events in started}) == 3
        match = tiers.cache.match(prompt(3, PAGE))
        assert match.host_hit_pages == 1 and tiers.cache.load_back(match, "r3") is None
        assert tiers.pinned == 3, "the refused load-back left a pin"
        assert started[0] is not None
        await started[0].all_done.synchronize("the first load")
        assert tiers.load(3, 1) is not None
        assert tiers.cache.start_loading() is started[0]

    tiers.run(main)
    assert len(tiers.loads) == 4 * 2 * LAYERS


def test_a_load_started_without_a_batch_is_awaited_by_the_next_one() -> None:
    tiers = Tiers(faults=(delay("loadback.copy_layer", 1000),))

    async def main() -> None:
        await tiers.on_host_only(1, 1)
        assert tiers.load(1, 1) is not None
        draining = asyncio.create_task(tiers.cache.drain())
        await asyncio.sleep(1e-4)
        events = tiers.cache.start_loading()
        assert events is not None and not events.layer_done(0).query()
        assert tiers.cache.start_loading() is None, "one batch is behind it, and the next behind that"
        await draining
        assert tiers.load(1, 1) is None and tiers.cache.start_loading() is None

    tiers.run(main)


def test_an_ack_unlocks_the_nodes_and_their_host_pages() -> None:
    tiers = Tiers()

    async def main() -> None:
        node = await tiers.on_host_only(1, 2)
        assert tiers.load(1, 2) is not None
        assert (tiers.pinned, node.host_ref) == (2, 1)
        events = tiers.cache.start_loading()
        assert events is not None
        tiers.cache.poll()
        assert (tiers.pinned, node.host_ref) == (2, 1), "acknowledged before it was done"
        tiers.cache.evict_device(8)
        assert node.resident
        await events.all_done.synchronize("the load")
        assert (tiers.pinned, node.host_ref) == (2, 1), "done is not acknowledged"
        tiers.cache.poll()
        assert (tiers.pinned, node.host_ref) == (0, 0) and not tiers.cache.pending

    tiers.run(main)


def test_acks_come_in_the_order_of_the_loads_one_by_one() -> None:
    tiers = Tiers(host_pages=16, faults=(delay("loadback.copy_layer", 1000, skip=6),))

    async def main() -> None:
        nodes = [tiers.insert(family, 1) for family in (1, 2)]
        await tiers.cache.drain()
        tiers.cache.evict_device(8)
        events = []
        for family in (1, 2):
            assert tiers.load(family, 1) is not None
            events.append(tiers.cache.start_loading())
        assert events[0] is not None
        await events[0].all_done.synchronize("the first")
        tiers.cache.poll()
        assert [node.lock_ref for node in nodes] == [0, 1]
        await tiers.cache.drain()
        assert [node.lock_ref for node in nodes] == [0, 0]

    tiers.run(main)


def test_a_ring_slot_that_is_taken_again_delays_no_ack() -> None:
    tiers = Tiers(host_pages=16, faults=(delay("loadback.copy_layer", 5000, skip=18),))

    async def main() -> None:
        nodes = [tiers.insert(family, 1) for family in range(4)]
        await tiers.cache.drain()
        tiers.cache.evict_device(8)
        for family in range(3):
            assert tiers.load(family, 1) is not None
            events = tiers.cache.start_loading()
        assert events is not None
        await events.all_done.synchronize("three loads are done, nobody has polled")
        assert tiers.load(3, 1) is not None
        tiers.cache.start_loading()  # into the first one's slot
        tiers.cache.poll()
        assert [node.lock_ref for node in nodes] == [0, 0, 0, 1]

    tiers.run(main)


def test_a_load_back_without_room_is_refused_and_leaves_nothing_behind() -> None:
    tiers = Tiers()

    async def main() -> None:
        node = await tiers.on_host_only(1, 2)
        held = tiers.cache.allocate(7, "somebody")
        assert held is not None
        assert tiers.load(1, 2) is None
        assert not node.resident and (node.lock_ref, node.host_ref) == (0, 0)
        assert (tiers.pinned, tiers.cache.device_pages.free_pages) == (0, 1)
        assert not tiers.cache.pending and tiers.cache.start_loading() is None
        tiers.cache.release(held)

    tiers.run(main)
    assert not tiers.loads and tiers.cache.load_back_tokens == 0


def test_a_long_transfer_has_larger_groups_and_never_more_of_them() -> None:
    tiers = Tiers(device_pages=64, host_pages=64, copy_group_pages=1)

    async def main() -> None:
        node = await tiers.on_host_only(1, 40)
        assert tiers.load(1, 40) is not None
        tiers.cache.start_loading()
        await tiers.cache.drain()
        assert tiers.holds("device", node.device_pages, 1)

    tiers.run(main)
    assert COPY_GROUPS_MAX < 40
    for ops in (tiers.loads, tiers.writes):
        assert 10 * 2 * LAYERS < len(ops) <= COPY_GROUPS_MAX * 2 * LAYERS


# -- write policies ---------------------------------------------------------------------------------------------------


def test_write_through_backs_up_on_the_first_hit_and_unlocks_on_the_ack() -> None:
    tiers = Tiers()

    async def main() -> None:
        node = tiers.insert(1, 2)
        assert node.backed_up and (tiers.pinned, node.host_ref) == (2, 1)
        tiers.cache.evict_device(8)
        assert node.resident, "evicted while it is written"
        await tiers.cache.drain()
        assert (tiers.pinned, node.host_ref) == (0, 0)
        assert tiers.holds("host", node.host_pages, 1)

    tiers.run(main)
    assert tiers.places(tiers.writes) == LAYER_BY_LAYER


def test_selective_backs_up_on_the_second_hit() -> None:
    tiers = Tiers(write_policy="write_through_selective")

    async def main() -> None:
        first = tiers.insert(1, 2)
        await tiers.cache.drain()
        assert not first.backed_up and not tiers.writes
        again = tiers.insert(1, 3)
        await tiers.cache.drain()
        assert first.backed_up and not again.backed_up, "the new part was hit once"
        assert tiers.holds("host", first.host_pages, 1)

    tiers.run(main)


def test_write_back_backs_up_at_eviction_and_frees_the_pages_after_the_ack() -> None:
    tiers = Tiers(write_policy="write_back")

    async def main() -> None:
        node = tiers.insert(1, 8)
        await tiers.cache.drain()
        assert not node.backed_up and not tiers.writes
        assert tiers.cache.allocate(2, "r2") is None
        assert node.backed_up and node.resident and tiers.pinned == 8
        assert tiers.cache.allocate(2, "r2") is None, "evicted before the ack"
        assert len({op.step for op in tiers.writes}) <= 1
        await tiers.cache.drain()
        pages = tiers.cache.allocate(2, "r2")
        assert pages is not None and not node.resident
        assert tiers.holds("host", node.host_pages, 1)
        tiers.cache.release(pages)

    tiers.run(main)
    assert tiers.places(tiers.writes) == [place for place in LAYER_BY_LAYER for _ in range(4)]


def test_write_back_counts_what_is_being_backed_up_and_evicts_no_more_for_it() -> None:
    tiers = Tiers(write_policy="write_back")

    async def main() -> None:
        nodes = [tiers.insert(family, 2) for family in range(4)]
        for _ in range(3):
            assert tiers.cache.allocate(2, "r") is None
        assert [node.backed_up for node in nodes] == [True, False, False, False]
        await tiers.cache.drain()
        pages = tiers.cache.allocate(2, "r")
        assert pages is not None and [node.resident for node in nodes] == [False, True, True, True]
        tiers.cache.release(pages)

    tiers.run(main)


async def short_of_host_pages(tiers: Tiers) -> tuple[Node, Node]:
    """Let a prefix that is loaded back fill the host together with one that is on the device alone; return both."""
    one = tiers.insert(1, 2)
    tiers.cache.evict_device(2)
    await tiers.cache.drain()
    tiers.cache.evict_device(2)
    assert one.backed_up and not one.resident
    other = tiers.insert(2, 6)
    assert tiers.load(1, 2) is not None
    return one, other


SHORT = {"write_policy": "write_back", "reclaim_host": True, "host_pages": 6}


def test_a_host_allocation_with_room_takes_no_page_off_the_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(tree: RadixTree, num_pages: int) -> Pages:
        raise AssertionError("the tree was searched though pages are free")

    for name in ("reclaim_host", "evict_host"):
        monkeypatch.setattr(repro.serve.kv.tiers, name, refuse)
    tiers = Tiers(**SHORT)

    async def main() -> None:
        node = tiers.insert(1, 2)
        tiers.cache.evict_device(8)
        assert node.backed_up

    tiers.run(main)


def test_a_copy_of_what_is_on_the_device_too_makes_room_once_its_load_back_is_acknowledged() -> None:
    tiers = Tiers(**SHORT)

    async def main() -> None:
        one, other = await short_of_host_pages(tiers)
        tiers.cache.start_loading()
        await tiers.cache.drain()
        tiers.cache.evict_device(1)  # the younger is the leaf used longest ago: loading has matched the other since
        assert other.backed_up and not one.backed_up and one.resident
        await tiers.cache.drain()
        assert tiers.holds("device", one.device_pages, 1) and tiers.holds("host", other.host_pages, 2)

    tiers.run(main)
    [event] = [event for event in tiers.events if isinstance(event, CacheEvent) and event.what == "reclaim_host"]
    assert event.tokens == 2 * PAGE


def test_a_queued_load_back_keeps_its_host_pages_from_being_reclaimed() -> None:
    tiers = Tiers(**SHORT)

    async def main() -> None:
        one, other = await short_of_host_pages(tiers)
        tiers.cache.evict_device(1)
        assert one.backed_up and other.parent is None, "what has no room on the host is lost"
        tiers.cache.start_loading()
        await tiers.cache.drain()
        assert tiers.holds("device", one.device_pages, 1)

    tiers.run(main)


def test_without_its_guard_a_write_back_overwrites_what_a_load_back_is_still_to_read() -> None:
    guards = Guards().replaced(release_host_at_enqueue=lambda: True)
    tiers = Tiers(guards=guards, faults=(delay("loadback.copy_layer", 5000),), **SHORT)

    async def main() -> None:
        one, other = await short_of_host_pages(tiers)
        tiers.cache.evict_device(1)
        assert other.backed_up and not one.backed_up
        tiers.cache.start_loading()
        await tiers.cache.drain()
        assert tiers.holds("device", one.device_pages, 2), "the other prefix's bytes"
        assert tiers.pinned == 0 and one.host_ref == other.host_ref == 0

    tiers.run(main)


@pytest.mark.parametrize("policy", ["write_through", "write_back"])
def test_without_room_on_the_host_what_is_evicted_is_lost_but_nothing_stops(policy: str) -> None:
    tiers = Tiers(write_policy=policy, host_pages=1)

    async def main() -> None:
        node = tiers.insert(1, 8)
        assert not node.backed_up
        assert tiers.cache.allocate(1, "r") is not None
        assert node.parent is None and tiers.cache.tree.device_pages_total == 0

    tiers.run(main)


def test_without_hicache_nothing_is_backed_up_and_eviction_deletes() -> None:
    tiers = Tiers(hicache=False, write_policy="write_back")

    async def main() -> None:
        node = tiers.insert(1, 8)
        assert tiers.cache.allocate(1, "r") is not None
        assert not node.backed_up and node.parent is None and not tiers.cache.pending

    tiers.run(main)
    assert not tiers.writes


def test_a_write_waits_for_the_kernels_that_store_the_pages_and_its_first_copy_only() -> None:
    tiers = Tiers()

    async def main() -> None:
        tiers.insert(1, 2, us=5000)

    tiers.run(main)
    [store] = tiers.ops("forward.store")
    first, *others = tiers.writes
    assert [edge.source for edge in first.after] == [("compute", 0)] and store.end_us <= first.start_us
    assert not any(op.after for op in others)


def test_without_its_guard_the_host_keeps_the_pages_previous_bytes() -> None:
    tiers = Tiers(guards=Guards().replaced(before_write_back=never))

    async def main() -> None:
        tiers.write("device", np.arange(8, dtype=np.int32), 9)
        node = tiers.insert(1, 2, us=50_000)
        await tiers.cache.drain()
        assert tiers.holds("host", node.host_pages, 9)

    tiers.run(main)


def test_writes_are_acknowledged_in_order() -> None:
    tiers = Tiers(faults=(delay("writeback.copy_layer", 1000, skip=6),))

    async def main() -> None:
        nodes = [tiers.insert(family, 1) for family in (1, 2)]
        while nodes[0].lock_ref:
            await tiers.device.settle()
            tiers.device.charge(100)
            tiers.cache.poll()
        assert [node.lock_ref for node in nodes] == [0, 1]
        await tiers.cache.drain()
        assert [node.lock_ref for node in nodes] == [0, 0]

    tiers.run(main)


def test_a_write_stream_that_lags_takes_no_more_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repro.serve.kv.tiers, "WRITE_COPIES_MAX", 2 * LAYERS)
    tiers = Tiers()

    async def main() -> None:
        one, other = tiers.insert(1, 1), tiers.insert(2, 1)
        assert one.backed_up and not other.backed_up
        await tiers.cache.drain()
        tiers.insert(2, 1)  # hit again
        await tiers.cache.drain()
        assert tiers.holds("host", other.host_pages, 2)

    tiers.run(main)
    assert [event.what for event in tiers.events if isinstance(event, LimitEvent)] == ["write_copies"]


# -- eviction ---------------------------------------------------------------------------------------------------------


def test_allocation_evicts_only_what_is_short_the_least_recently_used_first() -> None:
    tiers = Tiers()

    async def main() -> None:
        nodes = [tiers.insert(family, 2) for family in range(4)]
        await tiers.cache.drain()
        tiers.cache.match(prompt(0, 2 * PAGE))  # the oldest becomes the youngest
        pages = tiers.cache.allocate(3, "r")
        assert pages is not None
        assert [node.resident for node in nodes] == [True, False, False, True]
        assert all(node.backed_up for node in nodes)
        tiers.cache.release(pages)

    tiers.run(main)
    evictions = [e for e in tiers.events if isinstance(e, CacheEvent) and e.what == "evict_device"]
    assert sum(event.tokens for event in evictions) == tiers.cache.evicted_tokens == 4 * PAGE


def test_host_eviction_takes_only_what_the_device_has_let_go() -> None:
    tiers = Tiers(host_pages=4)

    async def main() -> None:
        nodes = [tiers.insert(family, 2) for family in range(2)]
        third = tiers.insert(2, 2)
        await tiers.cache.drain()
        assert [node.backed_up for node in (*nodes, third)] == [True, True, False], "resident copies were taken"
        tiers.cache.evict_device(2)  # the first, now on the host only
        fourth = tiers.insert(3, 2)
        await tiers.cache.drain()
        assert nodes[0].parent is None and fourth.backed_up
        assert nodes[1].resident and nodes[1].backed_up

    tiers.run(main)
    evictions = [e for e in tiers.events if isinstance(e, CacheEvent) and e.what == "evict_host"]
    assert [event.tokens for event in evictions] == [2 * PAGE]


def test_host_pages_that_a_load_back_reads_stay_until_its_ack() -> None:
    tiers = Tiers(host_pages=2, faults=(delay("loadback.copy_layer", 1000),))

    async def main() -> None:
        node = await tiers.on_host_only(1, 2)
        assert tiers.load(1, 2) is not None
        tiers.cache.start_loading()
        other = tiers.insert(2, 2)
        assert not other.backed_up and node.backed_up
        await tiers.cache.drain()
        tiers.cache.evict_device(2)
        assert not node.resident or not other.resident
        assert tiers.holds("device", node.device_pages, 1) if node.resident else True

    tiers.run(main)


def test_a_pinned_prefix_is_never_evicted() -> None:
    tiers = Tiers()

    async def main() -> None:
        node, other = tiers.insert(1, 4), tiers.insert(2, 4)
        await tiers.cache.drain()
        tiers.cache.tree.pin(node)
        assert tiers.cache.available_pages == 4
        assert tiers.cache.allocate(5, "r") is None
        assert node.resident and not other.resident
        tiers.cache.tree.unpin(node)

    tiers.run(main)


# -- pages, drain, reset ----------------------------------------------------------------------------------------------


def test_inserted_pages_become_the_trees_and_what_it_has_already_comes_back() -> None:
    tiers = Tiers()

    async def main() -> None:
        one, other = (tiers.cache.allocate(2, name) for name in ("a", "b"))
        assert one is not None and other is not None
        node, duplicates = tiers.cache.insert(prompt(1, 2 * PAGE), one)
        assert not len(duplicates)
        assert [tiers.cache.device_pages.owner(int(page)) for page in one] == ["tree", "tree"]
        same, duplicates = tiers.cache.insert(prompt(1, 2 * PAGE), other)
        assert same is node and duplicates.tolist() == other.tolist()
        tiers.cache.release(duplicates)
        assert tiers.cache.device_pages.free_pages == 6

    tiers.run(main)
    whats = [event.what for event in tiers.events if isinstance(event, PageEvent) and event.tier == "device"]
    assert whats == ["alloc", "alloc", "publish", "free"]


def test_drain_ends_what_is_queued_and_what_is_in_flight() -> None:
    tiers = Tiers(host_pages=16)

    async def main() -> None:
        await tiers.on_host_only(1, 2)
        tiers.insert(2, 2)
        assert tiers.load(1, 2) is not None
        assert tiers.cache.pending
        await tiers.cache.drain()
        assert not tiers.cache.pending and tiers.pinned == 0
        check_tree(tiers.cache.tree)

    tiers.run(main)
    assert tiers.loads


def test_reset_gives_all_pages_of_both_tiers_back_and_refuses_while_anything_is_in_flight() -> None:
    tiers = Tiers(host_pages=16)

    async def main() -> None:
        await tiers.on_host_only(1, 2)
        tiers.insert(2, 3)
        with pytest.raises(AssertionError, match="in flight"):
            tiers.cache.reset()
        await tiers.cache.drain()
        tiers.cache.reset()
        assert (tiers.cache.device_pages.free_pages, tiers.cache.host_pages.free_pages) == (8, 16)
        assert tiers.cache.match(prompt(2, 3 * PAGE)).host_node is tiers.cache.tree.root
        tiers.cache.device_pages.check()
        tiers.cache.host_pages.check()

    tiers.run(main)


def test_random_prefixes_over_tiny_tiers_keep_every_byte_where_it_belongs() -> None:
    rng = np.random.Generator(np.random.Philox(7))
    for policy in ("write_through", "write_through_selective", "write_back"):
        for free_list in ("lifo", "fifo", "deferred_sorted"):
            tiers = Tiers(write_policy=policy, free_list=free_list, host_pages=6, device_pages=8)

            async def main(tiers: Tiers = tiers) -> None:
                for _ in range(60):
                    await use_a_prefix(tiers, int(rng.integers(4)), int(rng.integers(1, 5)))
                await tiers.cache.drain()
                assert tiers.pinned == 0
                check_tree(tiers.cache.tree)
                for tier, pages in (("device", tiers.cache.device_pages), ("host", tiers.cache.host_pages)):
                    total = (
                        tiers.cache.tree.device_pages_total if tier == "device" else tiers.cache.tree.host_pages_total
                    )
                    assert pages.free_pages + total == pages.num_pages
                    pages.check()

            tiers.run(main)
            assert tiers.cache.load_back_tokens > 0, f"{policy}, {free_list}: nothing was loaded back"


async def use_a_prefix(tiers: Tiers, family: int, pages: int) -> None:
    """Match, load back, compute the rest and cache it, as the scheduler does for a request."""
    cache = tiers.cache
    cache.poll()
    match = cache.match(prompt(family, pages * PAGE))
    node, held = match.device_node, match.device_pages
    cache.tree.pin(node)
    loaded = cache.load_back(match, "r") if match.host_hit_pages else None
    if loaded is not None:
        cache.tree.pin(match.host_node)
        cache.tree.unpin(node)
        node, held = match.host_node, np.concatenate((held, loaded))
    own = cache.allocate(pages - len(held), "r")
    events = cache.start_loading()
    if events is not None:
        for layer in range(LAYERS):
            tiers.compute.wait(events.layer_done(layer), "the layer is loaded")
    if own is None:
        cache.tree.unpin(node)
        await cache.drain()
        return
    tiers.compute_pages(own, family)
    whole = np.concatenate((held, own)).astype(np.int32)
    await tiers.compute.synchronize("the step")
    assert tiers.holds("device", whole, family)
    cache.touch(whole, tiers.step)
    _, duplicates = cache.insert(prompt(family, pages * PAGE), whole)
    cache.release(duplicates)
    cache.tree.unpin(node)
