"""A node of the prefix tree: a run of whole pages of tokens, on the device, on the host, or on both."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile

import numpy as np
import numpy.typing as npt

from repro.serve.kv.pool import NO_PAGES, Pages

TokenRun = npt.NDArray[np.int64]


@dataclass(eq=False, slots=True)
class Node:
    """A run of cached pages. Only the tree changes it; callers read it.

    A pin of a node is counted in `lock_ref` on the whole path to the root:

        root --- upper (pins 1, lock_ref 3) --- lower (pins 2, lock_ref 2)
    """

    id: int  # counts up, never used again
    key: TokenRun  # tokens of whole pages, or their keys (`sched.keys`)
    parent: "Node | None" = field(repr=False)  # None: the root, or deleted from the tree
    device_pages: Pages | None = None  # None: evicted from the device
    host_pages: Pages | None = None  # None: not backed up
    children: dict[bytes, "Node"] = field(default_factory=dict, repr=False)  # the key is the first page of tokens
    resident_children: int = 0
    pins: int = 0  # pins of this node itself
    lock_ref: int = 0  # pins of this node and of nodes below it
    host_pins: int = 0  # host pins of this node itself
    host_ref: int = 0  # host pins of this node and of nodes below it
    hit_count: int = 0
    last_access: int = 0

    @property
    def resident(self) -> bool:
        """Return whether the node has device pages."""
        return self.device_pages is not None

    @property
    def backed_up(self) -> bool:
        """Return whether the node has host pages; a write-back may still fill them while it is locked."""
        return self.host_pages is not None

    @property
    def num_pages(self) -> int:
        """Return how many pages of tokens the node holds."""
        pages = self.host_pages if self.device_pages is None else self.device_pages
        assert pages is not None, f"node {self.id} is on neither tier"
        return len(pages)

    @property
    def is_device_leaf(self) -> bool:
        """Return whether an eviction may take the device pages."""
        return self.parent is not None and self.resident and self.resident_children == 0 and self.lock_ref == 0

    @property
    def is_host_leaf(self) -> bool:
        """Return whether an eviction may take the host pages, and the node with them."""
        return self.parent is not None and not self.resident and not self.children and self.host_ref == 0

    def get_parent(self) -> "Node":
        """Return the parent. Raises AssertionError for the root and for a deleted node."""
        assert self.parent is not None, f"node {self.id} is the root or was deleted"
        return self.parent

    def path(self) -> list["Node"]:
        """Return the nodes from below the root down to this one. Raises AssertionError when it was deleted."""
        path: list[Node] = []
        node = self
        while len(node.key):  # the root alone has no tokens
            path.append(node)
            node = node.get_parent()
        return path[::-1]

    def evicted_path(self) -> tuple["Node", list["Node"]]:
        """Return (deepest resident ancestor, evicted nodes from below it to this one); (this node, []) if resident."""
        path = [node for node in self.path() if not node.resident]
        return (path[0].get_parent() if path else self), path

    def tokens(self) -> TokenRun:
        """Return all tokens from the root to the end of this node."""
        return np.concatenate([np.empty(0, np.int64), *(node.key for node in self.path())])

    def host_tail(self) -> Pages:
        """Return the host pages of the longest run of tokens that ends with this node and is all on the host."""
        copies = takewhile(lambda pages: pages is not None, (node.host_pages for node in reversed(self.path())))
        return joined(list(copies)[::-1])

    def due_for_backup(self, threshold: int) -> list["Node"]:
        """Return the nodes on the path to this one that are due for a host copy, top-down.

        Due is a node with at least `threshold` hits (1: write_through, 2: selective) whose parent
        is backed up or comes before it here. Valid until the next change.
        """
        due: list[Node] = []
        for node in self.path():
            if node.backed_up:
                continue
            if node.hit_count < threshold:
                break
            due.append(node)
        return due


def joined(parts: Sequence[Pages | None]) -> Pages:
    """Return all parts but None in one new array."""
    pages = [part for part in parts if part is not None]
    return np.concatenate(pages) if pages else NO_PAGES.copy()


def parted(pages: Pages | None, at: int) -> tuple[Pages | None, Pages | None]:
    """Return the pages before and from `at`, twice None for None."""
    return (None, None) if pages is None else (pages[:at], pages[at:])


def shared_tokens(one: TokenRun, other: TokenRun) -> int:
    """Return how many leading tokens two runs have in common."""
    length = min(len(one), len(other))
    differing = np.flatnonzero(one[:length] != other[:length])
    return int(differing[0]) if len(differing) else length
