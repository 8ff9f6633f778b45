"""The owner of each page: the free list of one tier's pages.

The order in which freed pages come back decides how soon a late write meets a new owner:
  lifo             freed pages go to the front of the list: the next request gets them at once
  fifo             freed pages go to the back: reuse comes after the whole pool has gone round
  deferred_sorted  freed pages wait aside until the list is too short, then both are merged and
                   sorted (what SGLang does in PD mode): reuse takes pool pressure
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt

from repro.serve.guards.decisions import FreeGuard, refuse_double_free
from repro.serve.kv.pool import NO_PAGES, Pages

FreeListPolicy = Literal["lifo", "fifo", "deferred_sorted"]
PageChange = Literal["alloc", "free", "publish"]
OnPageEvent = Callable[[PageChange, Pages, str], None]  # (what, pages, owner)

NOBODY = ""  # the owner of a free page


def _ignore(what: PageChange, pages: Pages, owner: str) -> None:
    """Ignore a page event."""


class PageAllocator:
    """The one place where pages of a tier are handed out and taken back.

        handed out <-- [ ready ........ ]   [ pending ... ]   deferred_sorted alone has pending pages
                        ^ lifo    fifo ^     ^ deferred_sorted
                        '------- freed pages ------'

    `on_event` is called after each change, once per owner for a free; it must not change the allocator.
    `on_double_free` is called for each page that `free` or `publish` is given and that is free already. A
    guard that returns lets the page be handed out twice.
    """

    def __init__(
        self,
        num_pages: int,
        policy: FreeListPolicy,
        on_event: OnPageEvent = _ignore,
        on_double_free: FreeGuard = refuse_double_free,
    ) -> None:
        assert policy in ("lifo", "fifo", "deferred_sorted"), f"no such free list policy: {policy!r}"
        assert num_pages > 0, f"{num_pages} pages leave none to hand out"
        self.num_pages = num_pages
        self.policy = policy
        self._on_event = on_event
        self._on_double_free = on_double_free
        self._ready: Pages = np.arange(num_pages, dtype=np.int32)  # the first is handed out first
        self._pending = NO_PAGES  # freed since the last merge
        self._owner: npt.NDArray[np.object_] = np.full(num_pages, NOBODY, object)

    @property
    def free_pages(self) -> int:
        """Return how many pages are free now, pending ones included."""
        return len(self._ready) + len(self._pending)

    @property
    def used_pages(self) -> int:
        """Return how many pages have an owner now."""
        return self.num_pages - self.free_pages

    def owner(self, page: int) -> str:
        """Return who holds the page, NOBODY when it is free."""
        name: str = self._owner[page]
        return name

    def alloc(self, num_pages: int, owner: str) -> Pages | None:
        """Return that many pages, (num_pages,) int32, or None and no change when too few are free.

        The pages are the owner's until `free`.
        """
        assert num_pages >= 0, f"{owner} asks for {num_pages} pages"
        if num_pages > self.free_pages:
            return None
        if num_pages > len(self._ready):
            self._ready = np.sort(np.concatenate((self._ready, self._pending)))
            self._pending = NO_PAGES
        pages = self._ready[:num_pages].copy()
        self._ready = self._ready[num_pages:]
        self._owner[pages] = owner
        if num_pages:
            self._on_event("alloc", pages, owner)
        return pages

    def free(self, pages: Pages) -> None:
        """Take pages back. Raises AssertionError, with no change, when one of them is not handed out
        (`on_double_free`)."""
        owners = self._owners(pages, "free")
        self._owner[pages] = NOBODY
        match self.policy:
            case "lifo":
                self._ready = np.concatenate((pages, self._ready))
            case "fifo":
                self._ready = np.concatenate((self._ready, pages))
            case "deferred_sorted":
                self._pending = np.concatenate((self._pending, pages))
        for owner in dict.fromkeys(owners.tolist()):
            self._on_event("free", pages[owners == owner], owner)

    def publish(self, pages: Pages, owner: str) -> None:
        """Make pages another owner's. Their content stays valid: so a request's pages become the prefix tree's.

        Raises AssertionError, with no change, when one of them is not handed out.
        """
        self._owners(pages, "publish")
        self._owner[pages] = owner
        if len(pages):
            self._on_event("publish", pages.copy(), owner)

    def check(self) -> None:
        """Raise AssertionError unless each page is free once, or has an owner."""
        free = np.concatenate((self._ready, self._pending))
        assert self.policy == "deferred_sorted" or not len(self._pending), "only deferred frees wait"
        assert len(np.unique(free)) == len(free), "a page is free twice"
        owned = np.flatnonzero(self._owner != NOBODY)
        assert np.array_equal(np.sort(np.concatenate((free, owned))), np.arange(self.num_pages)), (
            f"{len(free)} free and {len(owned)} owned pages are not the {self.num_pages} there are"
        )

    def _owners(self, pages: Pages, verb: str) -> npt.NDArray[np.object_]:
        """Return who holds each page, NOBODY where a page is repeated. Raises AssertionError when one is not
        handed out, or repeated."""
        outside = pages[(pages < 0) | (pages >= self.num_pages)]
        assert not len(outside), f"{verb}: page {outside[0]} is none of this pool"
        owners = self._owner[pages]
        for page in pages[owners == NOBODY].tolist():
            self._on_double_free(f"{verb}: page {page} is free already: double free")
        _, first = np.unique(pages, return_index=True)
        if len(first) != len(pages):
            self._on_double_free(f"{verb}: a page is there twice in {pages.tolist()}")
            repeated = np.ones(len(pages), bool)
            repeated[first] = False
            owners[repeated] = NOBODY
        return owners
