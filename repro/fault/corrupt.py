"""Corrupting faults: changes bytes in the stack's memory behind its back, at moments that the seed chooses.

The stack is not asked: it goes on as it would with memory, links and kernels that fail silently. Bytes change when
an operation has ended:

    memory.in_use     behind a step, in a page that it read and the tree has
    memory.cached     behind a step, in a page that the tree has and the step did not read
    memory.host       behind a step, in a page of the host tier that has been written
    memory.draft      as in_use, in the draft layer
    memory.in_flight  behind a copy, in a page that it wrote: as if the bytes had changed on the way

Only whole pages are taken, so that who reads the page reads the rows. What became of each change,
`fault.aftermath` follows.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from repro.base.probe import PAGE_SETS_VALID, Component, Event, FaultEvent, Op, PageEvent, PageSet, Tier
from repro.base.rng import generator
from repro.fault.aftermath import COPIES, READS, Aftermath, Spot
from repro.fault.damage import damaged, same
from repro.fault.injector import Injector
from repro.fault.plan import Fault
from repro.serve.kv.pool import COMPONENTS, KVPool, Rows

STEP_ENDS = "forward.sample"
TREE = "tree"
TWO_PAGES = ("swap", "misdirect")
TRIES_MAX = 16  # pages tried, where a fault would change nothing


class _Tier:
    """One pool whose pages have owners: who they are, and what each page held when it was handed out, which takes as
    much memory as the pool."""

    def __init__(self, pool: KVPool) -> None:
        self.pool = pool
        self.owners: dict[int, str] = {}
        self._before: dict[tuple[Component, int], Rows] = {
            (component, layer): pool.read(component, layer, np.arange(pool.pages, dtype=np.int32))
            for component in COMPONENTS
            for layer in pool.layer_numbers
        }

    def take(self, event: PageEvent, pages: list[int]) -> None:
        """Take note of pages that changed hands."""
        for page in pages:
            if event.what == "free":
                self.owners.pop(page, None)
            else:
                self.owners[page] = event.owner
        if event.what == "alloc" and pages:
            rows = np.array(pages, np.int32)
            for (component, layer), before in self._before.items():
                now = self.pool.read(component, layer, rows)
                before.stamps[rows], before.taint[rows] = now.stamps, now.taint
                if before.values is not None and now.values is not None:
                    before.values[rows.tolist()] = now.values

    def before(self, component: Component, layer: int, page: int) -> Rows:
        """Return a copy of what a page held when it was handed out."""
        rows, place = self._before[component, layer], [page]
        return Rows(None if rows.values is None else rows.values[place], rows.stamps[place], rows.taint[place])

    def stamps(self, component: Component, layer: int, page: int) -> bytes:
        """Return the stamps that a page holds."""
        stamps: bytes = self.pool.stamps_of(component, layer)[page].tobytes()
        return stamps

    def written(self, component: Component, layer: int, page: int) -> NDArray[np.bool_]:
        """Return which rows of a page hold other bytes than when it was handed out, (page_tokens,)."""
        now = self.pool.read(component, layer, np.array([page], np.int32))
        changed: NDArray[np.bool_] = ~same(now, self.before(component, layer, page))[0]
        return changed


class _Place(NamedTuple):
    """Where a fault may strike: pages of a tier, and the layers and components that may be taken."""

    tier: _Tier
    pages: Sequence[int]
    layers: Sequence[int]
    components: Sequence[Component]


class Corruptor:
    """A listener that carries out the corrupting faults of a plan. Call `memory` before anything runs."""

    def __init__(self, injector: Injector, seed: int, *, drafts: bool) -> None:
        self._injector = injector
        self._seed = seed
        self._drafts = drafts
        self._tiers: dict[Tier, _Tier] = {}
        self._sets: dict[int, list[int]] = {}
        # Pages that the step has read so far, by tier and whether its draft layer read them.
        self._read: defaultdict[tuple[Tier, bool], set[int]] = defaultdict(set)
        self._struck: defaultdict[tuple[str, str], int] = defaultdict(int)
        self.aftermath = Aftermath(self._pages)

    def memory(self, pools: Iterable[KVPool]) -> None:
        """Take the pools that may be corrupted."""
        self._tiers = {pool.tier: _Tier(pool) for pool in pools}
        self.aftermath.memory({name: tier.pool for name, tier in self._tiers.items()})

    def feed(self, event: Event) -> None:
        """Take the next event, and change what a fault wants to be changed behind it."""
        self.aftermath.feed(event)
        if isinstance(event, PageSet):
            self._sets[event.id] = [
                page
                for start, stop in zip(event.ranges[::2], event.ranges[1::2], strict=True)
                for page in range(start, stop)
            ]
            self._sets.pop(event.id - PAGE_SETS_VALID, None)
        elif isinstance(event, PageEvent):
            if event.tier in self._tiers:
                self._tiers[event.tier].take(event, self._pages(event.pages))
        elif isinstance(event, Op):
            self._after(event)

    def _pages(self, number: int) -> list[int]:
        return self._sets[number]

    def _after(self, op: Op) -> None:
        if op.name in COPIES:
            self._strike("memory.in_flight", op, self._copied(op))
        elif op.name in READS:
            for access in op.accesses:
                tier = self._tiers.get(access.tier)
                if tier is not None and not access.write:
                    self._read[access.tier, self._is_draft(tier, access.layer)].update(self._pages(access.pages))
        elif op.name == STEP_ENDS:
            of_stream = {name: tier for name, tier in self._tiers.items() if _host(name) == op.by}
            for name, tier in of_stream.items():
                if (name, False) in self._read or (name, True) in self._read:
                    self._strike("memory.in_use", op, self._in_use(name, tier))
                    self._strike("memory.cached", op, self._cached(name, tier))
                    self._strike("memory.draft", op, self._draft(name, tier))
                elif name.endswith("host"):
                    self._strike("memory.host", op, self._host_pages(tier))
            for name in of_stream:
                self._read.pop((name, False), None)
                self._read.pop((name, True), None)

    # -- places -----------------------------------------------------------------------------------------

    def _copied(self, op: Op) -> _Place | None:
        """Return the pages that a copy has brought whole; the last page of a prompt that is sent is not."""
        ends = {access.write: access for access in op.accesses}
        write, source, tier = ends[True], self._tiers.get(ends[False].tier), self._tiers.get(ends[True].tier)
        if source is None or tier is None:
            return None
        component, layer = write.component, write.layer
        whole = {
            source.stamps(component, layer, page)
            for page in self._pages(ends[False].pages)
            if source.written(component, layer, page).all()
        }
        pages = [page for page in self._pages(write.pages) if tier.stamps(component, layer, page) in whole]
        return _Place(tier, pages, (layer,), (component,))

    def _in_use(self, name: Tier, tier: _Tier) -> _Place:
        return _Place(tier, self._of_tree(tier, self._read[name, False]), self._layers(tier), COMPONENTS)

    def _cached(self, name: Tier, tier: _Tier) -> _Place:
        read = self._read[name, False] | self._read[name, True]
        return _Place(tier, self._of_tree(tier, tier.owners.keys() - read), self._layers(tier), COMPONENTS)

    def _draft(self, name: Tier, tier: _Tier) -> _Place:
        layers = tier.pool.layer_numbers[-1:] if self._drafts else ()
        return _Place(tier, self._of_tree(tier, self._read[name, True]), layers, COMPONENTS)

    def _host_pages(self, tier: _Tier) -> _Place:
        return _Place(tier, sorted(tier.owners), self._layers(tier), COMPONENTS)

    def _of_tree(self, tier: _Tier, pages: Iterable[int]) -> list[int]:
        return sorted(page for page in pages if tier.owners.get(page) == TREE)

    def _layers(self, tier: _Tier) -> Sequence[int]:
        """Return the layers that are not the draft layer."""
        layers = tier.pool.layer_numbers
        return layers[:-1] if self._drafts else layers

    def _is_draft(self, tier: _Tier, layer: int) -> bool:
        return self._drafts and layer == tier.pool.layer_numbers[-1]

    # -- changes -------------------------------------------------------------------------------------

    def _strike(self, point: str, op: Op, place: _Place | None) -> None:
        """Ask which faults fire at a place that has pages, and carry them out."""
        if place is None or not place.pages or not place.layers:
            return
        for fault in self._injector.firing(point, op.stream):
            self._struck[fault.name, op.stream] += 1
            draw = generator(self._seed, "corrupt", fault.name, op.stream, self._struck[fault.name, op.stream])
            spots = self._change(fault, place, draw, op.end_us)
            corrupted = tuple(spot.as_corrupted() for spot in spots)
            ref = (op.stream, op.index)
            self._injector.emit(FaultEvent(fault.name, point, op.end_us, 0.0, ref, op.stream, corrupted))
            self.aftermath.follow(fault.name, spots)

    def _change(self, fault: Fault, place: _Place, draw: np.random.Generator, at_us: float) -> list[Spot]:
        """Change a page, or two, and return where bytes are others now; nothing where no page tried would differ."""
        tier, kind = place.tier, fault.do.name
        for _ in range(TRIES_MAX):
            component = place.components[int(draw.integers(len(place.components)))]
            layer = place.layers[int(draw.integers(len(place.layers)))]
            page = place.pages[int(draw.integers(len(place.pages)))]
            pages, written = [page], tier.written(component, layer, page)
            if kind in TWO_PAGES:
                owned = sorted(tier.owners)
                pages.append(owned[int(draw.integers(len(owned)))])
            key = (tier.pool.tier, component, layer)
            if not written.any() or any(self.aftermath.follows(*key, each) for each in pages):
                continue
            if kind in TWO_PAGES and (pages[0] == pages[1] or not tier.written(component, layer, pages[1]).all()):
                continue
            held = [tier.pool.read(component, layer, np.array([each], np.int32)) for each in pages]
            made = damaged(kind, held[0], tier.before(component, layer, page), held[-1], written, draw)
            spots = [
                Spot(tier.pool, component, layer, each, ~same(old, new)[0], new, at_us)
                for each, old, new in zip(pages, held, made, strict=True)
            ]
            if all(spot.rows.any() for spot in spots):
                for spot in spots:
                    tier.pool.write(component, layer, np.array([spot.page], np.int32), spot.held)
                return spots
        return []


def _host(tier: Tier) -> str:
    """Return the host that owns a tier; "" where there is one host only."""
    return tier.rpartition(".")[0]
