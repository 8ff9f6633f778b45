"""Which page belongs to whom: the free list of one tier's pages.

A page number says where, its generation says when: whoever keeps a page number across a point at
which the page may be given back keeps the generation too, and compares.

The order in which freed pages come back decides how soon a late write meets a new owner:
  lifo             freed pages go to the front of the list: the next request gets them at once
  fifo             freed pages go to the back: reuse comes after the whole pool has gone round
  deferred_sorted  freed pages wait aside until the list is too short, then both are merged and
                   sorted (what SGLang does in PD mode): reuse takes pool pressure
"""

from collections import deque
from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt

from repro.serve.guards import FreeGuard, refuse_double_free

Pages = npt.NDArray[np.int32]
FreeListPolicy = Literal["lifo", "fifo", "deferred_sorted"]
PageChange = Literal["alloc", "free", "publish"]
OnPageEvent = Callable[[PageChange, Pages, str], None]  # (what, pages, owner)

PADDING_PAGE = 0  # where padded rows of a batch point when the page is reserved


def _ignore(what: PageChange, pages: Pages, owner: str) -> None:
    """Take a page event of a pool that nobody watches."""


class PageAllocator:
    """The one place where pages of a tier are handed out and taken back.

    `num_pages` counts the padding page when there is one. `on_event` is called after each change,
    once per owner for a free; it must not change the allocator. `on_double_free` is the guard of what
    `free` and `publish` are given: one that lets pages pass that are free already hands them out twice.
    """

    def __init__(
        self,
        num_pages: int,
        policy: FreeListPolicy,
        on_event: OnPageEvent = _ignore,
        *,
        has_padding_page: bool = False,
        on_double_free: FreeGuard = refuse_double_free,
    ) -> None:
        assert policy in ("lifo", "fifo", "deferred_sorted"), f"no such free list policy: {policy!r}"
        self.num_pages = num_pages
        self.policy = policy
        self._on_event = on_event
        self._on_double_free = on_double_free
        self._first_page = PADDING_PAGE + 1 if has_padding_page else 0
        assert num_pages > self._first_page, f"{num_pages} pages leave none to hand out"
        self._ready: deque[int] = deque(range(self._first_page, num_pages))  # handed out from the left
        self._pending: list[int] = []  # deferred_sorted only: freed since the last merge
        self._owner: list[str | None] = [None] * num_pages  # None: free, or the padding page
        self._generation: Pages = np.zeros(num_pages, np.int32)

    @property
    def capacity_pages(self) -> int:
        """Return how many pages can be handed out at most."""
        return self.num_pages - self._first_page

    @property
    def free_pages(self) -> int:
        """Return how many pages are free now, pending ones included."""
        return len(self._ready) + len(self._pending)

    @property
    def used_pages(self) -> int:
        """Return how many pages have an owner now."""
        return self.capacity_pages - self.free_pages

    def owner(self, page: int) -> str | None:
        """Return who holds the page, None when it is free or the padding page."""
        return self._owner[page]

    def generations(self, pages: Pages) -> Pages:
        """Return a copy of the pages' generations: how often each has been handed out so far."""
        return self._generation[pages]

    def alloc(self, num_pages: int, owner: str) -> Pages | None:
        """Return that many pages, (num_pages,) int32, or None and no change when too few are free.

        Each page's generation goes up by one. The pages are the owner's until `free`.
        """
        assert num_pages >= 0, f"{owner} asks for {num_pages} pages"
        if num_pages > self.free_pages:
            return None
        if num_pages > len(self._ready):
            self._merge_pending()
        pages = np.array([self._ready.popleft() for _ in range(num_pages)], np.int32)
        for page in pages.tolist():
            self._owner[page] = owner
        self._generation[pages] += 1
        if num_pages:
            self._on_event("alloc", pages, owner)
        return pages

    def free(self, pages: Pages) -> None:
        """Take pages back. Raises AssertionError, with no change, when one of them is not handed out
        (`on_double_free`)."""
        freed = self._handed_out(pages, "free")
        by_owner: dict[str, list[int]] = {}
        for page in freed:
            by_owner.setdefault(self._owner[page] or "", []).append(page)
            self._owner[page] = None
        match self.policy:
            case "lifo":
                self._ready.extendleft(reversed(freed))  # a batch keeps its order at the front
            case "fifo":
                self._ready.extend(freed)
            case "deferred_sorted":
                self._pending.extend(freed)
        for owner, of_owner in by_owner.items():
            self._on_event("free", np.array(of_owner, np.int32), owner)

    def publish(self, pages: Pages, owner: str) -> None:
        """Make pages another owner's without a new generation: their content stays valid.

        This is how a request's pages become the prefix tree's. Raises AssertionError, with no
        change, when one of them is not handed out.
        """
        for page in self._handed_out(pages, "publish"):
            self._owner[page] = owner
        if len(pages):
            self._on_event("publish", np.array(pages, np.int32), owner)

    def check(self) -> None:
        """Raise AssertionError unless each page is free once, or has an owner, or is the padding page."""
        free = [*self._ready, *self._pending]
        assert self.policy == "deferred_sorted" or not self._pending, "only deferred frees wait"
        assert len(np.unique(free)) == len(free), "a page is free twice"
        owned = [page for page, owner in enumerate(self._owner) if owner is not None]
        assert sorted(free + owned) == list(range(self._first_page, self.num_pages)), (
            f"{len(free)} free and {len(owned)} owned pages are not the {self.capacity_pages} there are"
        )
        assert all(self._generation[owned] > 0), "a page has an owner but was never handed out"

    def _merge_pending(self) -> None:
        self._ready = deque(sorted([*self._ready, *self._pending]))
        self._pending = []

    def _handed_out(self, pages: Pages, verb: str) -> list[int]:
        """Return the pages as a list. Raises AssertionError when one is not handed out, or is there twice."""
        numbers: list[int] = pages.tolist()
        for page in numbers:
            assert self._first_page <= page < self.num_pages, f"{verb}: page {page} is none of this pool"
            if self._owner[page] is None:
                self._on_double_free(
                    f"{verb}: page {page} (generation {self._generation[page]}) is free already: double free"
                )
        if len(np.unique(pages)) != len(numbers):
            self._on_double_free(f"{verb}: a page is there twice in {numbers}")
        return numbers
