"""Paged storage of one tier: latents, index keys, and the stamps that travel with them.

Layout of one layer and component, page p of S tokens:

    slot  0 ........ S-1 | S ....... 2S-1 | ...
          page 0         | page 1         |        slot = page * S + offset

Freeing a page changes no byte: the next owner finds the bytes of the last one, as on a real device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from repro.base.lazy import torch
from repro.base.probe import PAGE_SETS_VALID, Component, PageSet, Probes, Tier
from repro.serve.kv.stamps import Words, checksum

Pages = NDArray[np.int32]
NO_PAGES: Pages = np.empty(0, np.int32)
Place = Literal["device", "host"]
COMPONENTS: tuple[Component, ...] = ("latent", "index")


class Rows(NamedTuple):
    """Bytes of some pages of one layer and component, as read."""

    values: torch.Tensor | None  # (pages, page_tokens, width) fp32; None under numerics = "stamps"
    stamps: Words  # (pages, page_tokens)
    taint: NDArray[np.int32]  # (pages, page_tokens); 0, or the id of the bad read they stem from


class PageSets:
    """Names for sets of pages, so that an event carries a number instead of a list."""

    def __init__(self, probes: Probes) -> None:
        self._probes = probes
        self._ids: dict[bytes, int] = {}
        self._named = 0

    def intern(self, pages: Pages) -> int:
        """Return the id of this set; the first use emits its `PageSet`."""
        key = pages.tobytes()
        known = self._ids.get(key)
        if known is not None:
            return known
        if len(self._ids) >= PAGE_SETS_VALID // 2:
            self._ids.clear()  # a set gets a new name at its next use; numbers in flight stay valid
        self._named += 1
        number = self._ids[key] = self._named
        self._probes.emit(PageSet(number, _ranges(pages)))
        return number


@dataclass
class Names:
    """What all engines of one device number together, so that events and taint mean one thing."""

    page_sets: PageSets
    bad_reads: int = 0  # the last one's id

    def bad_read(self) -> int:
        """Return the id of a new bad read."""
        self.bad_reads += 1
        return self.bad_reads


class KVPool:
    """The pages of one tier. Plain memory: who may touch what, and when, is the caller's care.

    It holds `layers` layers, which callers call by their numbers in the model, from `first_layer` on. With
    `checksums` a row's stamp is mixed with a checksum of its values; `stamps_at` takes it out again.
    """

    def __init__(
        self,
        tier: Tier,
        layers: int,
        pages: int,
        page_tokens: int,
        widths: dict[Component, int] | None,
        *,
        first_layer: int = 0,
        checksums: bool = False,
    ) -> None:
        self.tier = tier
        self.layers = layers
        self.checksums = checksums and widths is not None
        self.layer_numbers = range(first_layer, first_layer + layers)
        self._first_layer = first_layer
        self.pages = pages
        self.page_tokens = page_tokens
        shape = (layers, pages, page_tokens)
        self.stamps = {component: np.zeros(shape, np.uint64) for component in COMPONENTS}
        self.taint = {component: np.zeros(shape, np.int32) for component in COMPONENTS}
        self.tainted = False  # whether any taint was ever written; spares the clean run the check
        self._writes = {component: np.zeros(layers, np.int64) for component in COMPONENTS}
        self.values = {
            component: torch.zeros(*shape, widths[component]) if widths else None for component in COMPONENTS
        }

    def flat(self, component: Component, layer: int) -> torch.Tensor:
        """Return (slots, width) fp32, a view of one layer; valid until the next write."""
        values = self.values[component]
        assert values is not None, "numerics = stamps moves no tensors"
        return values[self._place(layer)].view(self.pages * self.page_tokens, -1)

    def writes(self, component: Component, layer: int) -> int:
        """Return how many writes a layer has had: where the number is the same, so is every byte."""
        return int(self._writes[component][self._place(layer)])

    def _place(self, layer: int) -> int:
        assert layer in self.layer_numbers, f"{self.tier} holds layers {self.layer_numbers}, not {layer}"
        return layer - self._first_layer

    def stamps_of(self, component: Component, layer: int) -> Words:
        """Return (pages, page_tokens), a view of one layer's stamps."""
        stamps: Words = self.stamps[component][self._place(layer)]
        return stamps

    def taint_of(self, component: Component, layer: int) -> NDArray[np.int32]:
        """Return (pages, page_tokens), a view of one layer's taint."""
        taint: NDArray[np.int32] = self.taint[component][self._place(layer)]
        return taint

    def read(self, component: Component, layer: int, pages: Pages) -> Rows:
        """Return a copy of whole pages."""
        values, place = self.values[component], self._place(layer)
        return Rows(
            None if values is None else values[place][torch.from_numpy(pages.astype(np.int64))],
            self.stamps[component][place, pages],
            self.taint[component][place, pages],
        )

    def write(self, component: Component, layer: int, pages: Pages, rows: Rows) -> None:
        """Overwrite whole pages."""
        self._overwrite(component, (self._place(layer), pages.astype(np.int64)), rows)

    def read_page(self, component: Component, page: int) -> Rows:
        """Return a copy of all layers of one page, (layers, page_tokens, ...)."""
        values = self.values[component]
        return Rows(
            None if values is None else values[:, page].clone(),
            self.stamps[component][:, page].copy(),
            self.taint[component][:, page].copy(),
        )

    def write_page(self, component: Component, page: int, rows: Rows) -> None:
        """Overwrite all layers of one page with what `read_page` returned."""
        self._overwrite(component, (slice(None), page), rows)

    def _overwrite(self, component: Component, where: tuple[int | slice, NDArray[np.int64] | int], rows: Rows) -> None:
        self._writes[component][where[0]] += 1
        values = self.values[component]
        if values is not None:
            assert rows.values is not None
            values[where] = rows.values
        self.stamps[component][where] = rows.stamps
        self.taint[component][where] = rows.taint
        self.tainted |= bool(rows.taint.any())

    def stamps_at(self, component: Component, layer: int, pages: NDArray[np.int64], read: NDArray[np.bool_]) -> Words:
        """Return the stamps of these pages, (..., page_tokens); those of rows that are `read` without the checksum
        of the values that are there now."""
        stamps = self.stamps_of(component, layer)[pages]
        if self.checksums and read.any():
            slots = (pages[..., None] * self.page_tokens + np.arange(self.page_tokens))[read]
            stamps[read] ^= checksum(self.flat(component, layer)[torch.from_numpy(slots)])
        return stamps

    def write_slots(
        self,
        component: Component,
        layer: int,
        slots: NDArray[np.int64],
        values: torch.Tensor | None,
        stamps: Words,
        taint: NDArray[np.int32],
    ) -> None:
        """Write one row per slot, with its stamp."""
        self._writes[component][self._place(layer)] += 1
        if values is not None:
            self.flat(component, layer)[torch.from_numpy(slots)] = values
            if self.checksums:
                stamps = stamps ^ checksum(values)
        self.stamps_of(component, layer).reshape(-1)[slots] = stamps
        if self.tainted or taint.any():
            self.tainted = True
            self.taint_of(component, layer).reshape(-1)[slots] = taint


class Home(NamedTuple):
    """Where the rows of one layer of the model are: a pool, and the layer's number there."""

    pool: KVPool
    layer: int


def _ranges(pages: Pages) -> tuple[int, ...]:
    """Return pages as flat half-open ranges, ascending."""
    ranges: list[int] = []
    for page in sorted(set(pages.tolist())):
        if ranges and ranges[-1] == page:
            ranges[-1] += 1
        else:
            ranges += (page, page + 1)
    return tuple(ranges)
