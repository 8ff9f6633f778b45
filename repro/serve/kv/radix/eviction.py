"""What leaves the prefix tree when pages run short: the least recently used leaves, ties to the older node.

The functions take nodes off a tier and return their pages; the caller frees them.
"""

import heapq
from collections.abc import Callable
from typing import NamedTuple

from repro.serve.kv.pool import Pages
from repro.serve.kv.radix.node import Node, joined
from repro.serve.kv.radix.tree import RadixTree


class Evicted(NamedTuple):
    """Pages of the nodes that `evict_device` took, in the order of eviction."""

    device_pages: Pages
    host_pages: Pages  # host copies below deleted nodes


def evict_device(tree: RadixTree, num_pages: int, *, back_up: Callable[[Node], bool] | None = None) -> Evicted:
    """Take `num_pages` device pages or more off the tree; fewer if the rest is locked.

    A leaf is a resident node without resident children. A backed-up leaf stays in the tree as evicted; another
    is deleted, with all host copies below it, unless `back_up` (write_back) takes it. Then the callback has pinned
    it and given it host pages, and its pages count as evicted: they come free by another eviction after the ack.
    The callback may call `evict_host` and `reclaim_host`, and pins nothing else.
    """
    leaves = _oldest_first(tree.device_leaves)
    device_pages: list[Pages | None] = []
    host_pages: list[Pages | None] = []
    taken_pages = 0
    while leaves and taken_pages < num_pages:
        node = tree.device_leaves[heapq.heappop(leaves)[1]]
        if not node.backed_up and back_up is not None and back_up(node):
            assert node.backed_up and node.lock_ref > 0, f"back_up took node {node.id} without a pin"
            taken_pages += node.num_pages
            continue
        if not node.backed_up and node.host_ref > 0:
            continue  # a host copy below it is in use
        parent = node.get_parent()
        taken_pages += node.num_pages
        if node.backed_up:
            device_pages.append(tree.drop_device_pages(node))
        else:
            deleted = tree.delete(node)
            device_pages += [each.device_pages for each in deleted]
            host_pages += [each.host_pages for each in deleted]
        if parent.id in tree.device_leaves:
            heapq.heappush(leaves, (parent.last_access, parent.id))
    return Evicted(joined(device_pages), joined(host_pages))


def evict_host(tree: RadixTree, num_pages: int) -> Pages:
    """Delete evicted leaves of the tree and return their host pages.

    Returns fewer than `num_pages` when the rest is resident, host-pinned, or above such nodes.
    """
    leaves = _oldest_first(tree.host_leaves)
    freed: list[Pages | None] = []
    freed_pages = 0
    while leaves and freed_pages < num_pages:
        node = tree.host_leaves[heapq.heappop(leaves)[1]]
        parent = node.get_parent()
        tree.delete(node)
        freed.append(node.host_pages)
        freed_pages += node.num_pages
        if parent.id in tree.host_leaves:
            heapq.heappush(leaves, (parent.last_access, parent.id))
    return joined(freed)


def reclaim_host(tree: RadixTree, num_pages: int) -> Pages:
    """Take the host copies of resident nodes and return those pages, which may be fewer.

    Leaves that `evict_device` may take come last: an eviction would have to write them again at once. A host-pinned
    copy stays: a load-back reads it, or a write-back still fills it.
    """
    copies = [node for node in tree.nodes() if node.resident and node.backed_up and node.host_ref == 0]
    copies.sort(key=lambda node: (node.is_device_leaf, node.last_access, node.id))
    freed: list[Pages | None] = []
    freed_pages = 0
    for node in copies:
        if freed_pages >= num_pages:
            break
        freed.append(tree.drop_host_pages(node))
        freed_pages += node.num_pages
    return joined(freed)


def _oldest_first(leaves: dict[int, Node]) -> list[tuple[int, int]]:
    """Return a heap of (last access, id)."""
    heap = [(node.last_access, node.id) for node in leaves.values()]
    heapq.heapify(heap)
    return heap
