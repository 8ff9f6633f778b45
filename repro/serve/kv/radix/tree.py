"""The prefix tree: which tokens are cached in which pages, on the device, on the host, or both.

A node holds a run of whole pages. It is *resident* when it has device pages and *backed up* when
it has host pages; each node is at least one of them. A resident node never hangs below one that is
not, so each path from the root reads

    root --- resident ... resident --- evicted ... evicted
             device (and host) pages    host pages only
    |<-------- device hit ---------->|<---- host hit ---->|

The tree owns no memory: it takes page numbers in and returns them when it drops them, and the
caller frees them. Pins are counted on the whole path to the root, so that a split never changes what
a pin protects: the lower part keeps the node's identity and the upper part, a new node, its counts.

Time is a counter, one tick for each match or insert: the same calls give the same answers. The
operations follow SGLang's HiRadixCache in what they do.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

from repro.serve.kv.pool import NO_PAGES, Pages
from repro.serve.kv.radix.node import Node, TokenRun, joined, parted, shared_tokens

TokensLike = Sequence[int] | TokenRun


@dataclass(frozen=True, eq=False)
class Match:
    """The longest cached prefix. Valid until the next eviction or reset unless the nodes are pinned."""

    device_pages: Pages  # the resident part's, in token order
    device_node: Node  # the resident part ends here; the root for no hit
    host_node: Node  # the evicted part ends here; `device_node` when there is none
    host_hit_pages: int  # pages of the evicted part, between the two nodes


@dataclass(frozen=True, eq=False)
class Inserted:
    """What became of the inserted pages."""

    node: Node  # the inserted tokens end here
    new_pages: Pages  # given pages that are now the tree's
    duplicate_pages: Pages  # given pages that the tree has elsewhere: the caller frees them


class RadixTree:
    """The prefix tree of one engine over a device tier and a host tier. Only its methods change the attributes."""

    root: Node
    device_leaves: dict[int, Node]  # nodes that `evict_device` may take, by id
    host_leaves: dict[int, Node]  # nodes that `evict_host` may take, by id
    evictable_pages: int  # device pages of unlocked nodes
    protected_pages: int  # device pages of locked nodes
    host_pages_total: int

    def __init__(self, page_tokens: int) -> None:
        assert page_tokens > 0, f"a page of {page_tokens} tokens"
        self.page_tokens = page_tokens
        self._clock = 0
        self._ids = count(1)
        self._clear()

    @property
    def device_pages_total(self) -> int:
        """Return how many device pages the tree holds."""
        return self.evictable_pages + self.protected_pages

    # -- matching and growing -------------------------------------------------------------------

    def match(self, tokens: TokensLike) -> Match:
        """Return the longest cached prefix in whole pages, without a last page that is not full.

        Splits the node that the match ends in, and makes the path the most recently used. The
        caller leaves out the prompt's last token, which must be computed to have logits.
        """
        path = self._walk(self._whole_pages(tokens))
        self._touch(path)
        resident = [node for node in path if node.resident]
        evicted = path[len(resident) :]
        return Match(
            device_pages=joined([node.device_pages for node in resident]),
            device_node=resident[-1] if resident else self.root,
            host_node=path[-1] if path else self.root,
            host_hit_pages=sum(node.num_pages for node in evicted),
        )

    def insert(self, tokens: TokensLike, pages: Pages, *, counted_pages: int = 0) -> Inserted:
        """Cache these tokens in these device pages, one for each page of tokens.

        Where the tokens are resident the tree keeps its own pages; a given page that is another
        one comes back as duplicate, a given page that is the tree's own does not. An evicted node
        becomes resident in the given pages and keeps its host copy. Splits as `match` does, makes
        the path the most recently used, and counts one hit for each node on it except those within the
        first `counted_pages`: the caller has inserted these before. The node is not pinned.

        Raises AssertionError when the tokens are not exactly the pages' tokens.
        """
        run = self._whole_pages(tokens)
        assert len(tokens) == len(run) == len(pages) * self.page_tokens, (
            f"{len(tokens)} tokens for {len(pages)} pages of {self.page_tokens}"
        )
        path = self._walk(run)
        taken: list[Pages] = []
        duplicates: list[Pages] = []
        start = 0  # page of the run where the node begins
        for node in path:
            given = pages[start : start + node.num_pages]
            node.hit_count += start >= counted_pages
            start += node.num_pages
            if node.device_pages is None:
                self._make_resident(node, given)
                taken.append(given)
            else:
                duplicates.append(given[given != node.device_pages])
        if start < len(pages):
            leaf = self._add_leaf(path, run[start * self.page_tokens :])
            self._make_resident(leaf, pages[start:])
            leaf.hit_count += start >= counted_pages
            taken.append(pages[start:])
        self._touch(path)
        return Inserted(path[-1] if path else self.root, joined(taken), joined(duplicates))

    def insert_host(self, tokens: TokensLike, pages: Pages) -> Pages:
        """Cache the last pages of these tokens in host pages alone; return those that the tree did not take.

        It takes none where the tokens before them are not cached (any more), and none for tokens that are cached on
        either tier already. What it takes is an evicted node, the most recently used, and not pinned.
        """
        run = self._whole_pages(tokens)
        path = self._walk(run)
        covered = sum(node.num_pages for node in path)
        given_from = len(run) // self.page_tokens - len(pages)
        if covered < given_from:
            return pages
        left, taken = np.split(pages, [covered - given_from])
        if len(taken):
            leaf = self._add_leaf(path, run[covered * self.page_tokens :])
            leaf.host_pages = taken.copy()
            self.host_pages_total += len(taken)
            self._refresh_leaves(leaf)
        self._touch(path)
        return left

    # -- pins -----------------------------------------------------------------------------------

    def pin(self, node: Node) -> None:
        """Protect the device pages of `node` and of all its ancestors until `unpin`.

        Raises AssertionError when the node is not resident. Pinning the root does nothing.
        """
        assert node.resident, f"pin of node {node.id}, which is not resident"
        path = node.path()
        node.pins += bool(path)
        for each in path:
            if each.lock_ref == 0:
                self.evictable_pages -= each.num_pages
                self.protected_pages += each.num_pages
            each.lock_ref += 1
            self._refresh_leaf(each)

    def unpin(self, node: Node) -> None:
        """Undo one `pin` of the same node. Raises AssertionError when there is none left."""
        path = node.path()
        assert not path or node.pins, f"unpin of node {node.id}, which is not pinned itself"
        node.pins -= bool(path)
        for each in path:
            each.lock_ref -= 1
            if each.lock_ref == 0:
                self.protected_pages -= each.num_pages
                self.evictable_pages += each.num_pages
            self._refresh_leaf(each)

    def pin_host(self, node: Node) -> None:
        """Protect the host pages of `node` and of its ancestors (a load-back reads them) until `unpin_host`.

        Raises AssertionError when the node is not backed up.
        """
        assert node.backed_up, f"host pin of node {node.id}, which is not backed up"
        path = node.path()
        node.host_pins += bool(path)
        for each in path:
            each.host_ref += 1
            self._refresh_leaf(each)

    def unpin_host(self, node: Node) -> None:
        """Undo one `pin_host` of the same node. Raises AssertionError when there is none left."""
        path = node.path()
        assert not path or node.host_pins, f"host unpin of node {node.id}, which is not host-pinned itself"
        node.host_pins -= bool(path)
        for each in path:
            each.host_ref -= 1
            self._refresh_leaf(each)

    # -- moving between the tiers ---------------------------------------------------------------

    def set_device_pages(self, node: Node, pages: Pages) -> None:
        """Make an evicted node resident in `pages`, before any byte of them is valid.

        Raises AssertionError when the node is resident, its parent is not, or the count is wrong.
        The node is not pinned: the caller pins it before the next eviction.
        """
        assert not node.resident, f"node {node.id} is resident already"
        assert node.get_parent().resident, f"the parent of node {node.id} is evicted: set it first"
        assert len(pages) == node.num_pages, f"{len(pages)} pages for the {node.num_pages} of node {node.id}"
        self._make_resident(node, pages)

    def drop_device_pages(self, node: Node) -> Pages:
        """Make a backed-up node evicted and return its device pages for the caller to free.

        Raises AssertionError when it is not backed up, is locked, or has resident children.
        """
        assert node.device_pages is not None, f"node {node.id} is evicted already"
        assert node.backed_up, f"node {node.id} has no host copy to fall back on"
        assert node.lock_ref == 0, f"node {node.id} is locked by {node.lock_ref}"
        assert node.resident_children == 0, f"node {node.id} has resident children"
        pages = node.device_pages
        node.device_pages = None
        self.evictable_pages -= len(pages)
        node.get_parent().resident_children -= 1
        self._refresh_leaves(node)
        return pages

    def set_host_pages(self, node: Node, pages: Pages) -> None:
        """Give a resident node host pages, before any byte of them is valid.

        The caller pins the node until the copy is done: as long as it is resident nobody reads
        them. Raises AssertionError when it is not resident, backed up, or the count is wrong.
        """
        assert node.resident, f"node {node.id} is not resident: nothing to copy"
        assert not node.backed_up, f"node {node.id} is backed up already"
        assert len(pages) == node.num_pages, f"{len(pages)} pages for the {node.num_pages} of node {node.id}"
        node.get_parent()  # raises for a deleted node
        node.host_pages = pages.copy()
        self.host_pages_total += len(pages)

    def drop_host_pages(self, node: Node) -> Pages:
        """Take the host copy of a resident node and return its pages for the caller to free."""
        assert node.host_pages is not None, f"node {node.id} has no host copy"
        assert node.resident and node.host_ref == 0, f"the host copy of node {node.id} is in use"
        pages = node.host_pages
        node.host_pages = None
        self.host_pages_total -= len(pages)
        return pages

    # -- shrinking ------------------------------------------------------------------------------

    def delete(self, node: Node) -> list[Node]:
        """Cut off an unpinned node with all below it, which are evicted; return them, `node` first.

        Their pages are the caller's to free.
        """
        parent = node.get_parent()
        del parent.children[self.first_page(node.key)]
        parent.resident_children -= node.resident
        deleted = [node]
        for each in deleted:  # grows while it runs: breadth first
            deleted.extend(each.children.values())
        for each in deleted:
            assert each.lock_ref == each.host_ref == 0, f"delete of node {each.id}, which is pinned"
            self.evictable_pages -= 0 if each.device_pages is None else len(each.device_pages)
            self.host_pages_total -= 0 if each.host_pages is None else len(each.host_pages)
            each.parent = None
            self._refresh_leaf(each)
        self._refresh_leaf(parent)
        return deleted

    def reset(self) -> tuple[Pages, Pages]:
        """Forget everything and return (device pages, host pages), all the caller's to free.

        Raises AssertionError when anything is pinned. The former nodes are deleted ones.
        """
        nodes = list(self.nodes())
        pinned = [node.id for node in nodes if node.lock_ref or node.host_ref]
        assert not pinned, f"reset while nodes {pinned} are pinned"
        for node in nodes:
            node.parent = None
        self._clear()
        return joined([node.device_pages for node in nodes]), joined([node.host_pages for node in nodes])

    def _clear(self) -> None:
        self.root = Node(next(self._ids), np.empty(0, np.int64), None, device_pages=NO_PAGES, host_pages=NO_PAGES)
        self.device_leaves = {}
        self.host_leaves = {}
        self.evictable_pages = self.protected_pages = self.host_pages_total = 0

    # -- nodes and paths ------------------------------------------------------------------------

    def nodes(self) -> Iterator[Node]:
        """Yield all nodes without the root, parents before their children."""
        stack = list(self.root.children.values())
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())

    def first_page(self, run: TokenRun) -> bytes:
        """Return the key of a node with these tokens among its siblings."""
        return run[: self.page_tokens].tobytes()

    def _whole_pages(self, tokens: TokensLike) -> TokenRun:
        length = len(tokens) - len(tokens) % self.page_tokens
        return np.array(tokens[:length], np.int64)  # a copy: nodes keep parts of it

    def _walk(self, run: TokenRun) -> list[Node]:
        """Return the nodes that spell the longest cached prefix of `run`; splits the last if need be."""
        path: list[Node] = []
        node, rest = self.root, run
        while len(rest) and (child := node.children.get(self.first_page(rest))):
            shared_pages = shared_tokens(child.key, rest) // self.page_tokens
            node = child if shared_pages == child.num_pages else self._split(child, shared_pages)
            path.append(node)
            rest = rest[len(node.key) :]
        return path

    def _split(self, node: Node, num_pages: int) -> Node:
        """Return a new node with the first `num_pages` of `node`, which stays below it with the rest.

        The caller's `_touch` dates the new node, which is on the path that it walks.
        """
        parent = node.get_parent()
        upper_key, lower_key = np.split(node.key, [num_pages * self.page_tokens])
        upper_device, node.device_pages = parted(node.device_pages, num_pages)
        upper_host, node.host_pages = parted(node.host_pages, num_pages)
        upper = Node(
            id=next(self._ids),
            key=upper_key,
            parent=parent,
            device_pages=upper_device,
            host_pages=upper_host,
            children={self.first_page(lower_key): node},
            resident_children=int(node.resident),
            lock_ref=node.lock_ref,
            host_ref=node.host_ref,
            hit_count=node.hit_count,
        )
        parent.children[self.first_page(upper_key)] = upper
        node.key = lower_key
        node.parent = upper
        return upper

    def _add_leaf(self, path: list[Node], run: TokenRun) -> Node:
        """Append a node with these tokens to the end of a path; it has no pages yet."""
        parent = path[-1] if path else self.root
        node = Node(next(self._ids), run, parent)
        parent.children[self.first_page(run)] = node
        path.append(node)
        return node

    def _make_resident(self, node: Node, pages: Pages) -> None:
        node.device_pages = pages.copy()
        self.evictable_pages += len(pages)
        node.get_parent().resident_children += 1
        self._refresh_leaves(node)

    def _touch(self, path: list[Node]) -> None:
        self._clock += 1
        for node in path:
            node.last_access = self._clock

    def _refresh_leaves(self, node: Node) -> None:
        """Bring the sets of leaves up to date with `node` and its parent."""
        self._refresh_leaf(node)
        self._refresh_leaf(node.get_parent())

    def _refresh_leaf(self, node: Node) -> None:
        for leaves, is_leaf in ((self.device_leaves, node.is_device_leaf), (self.host_leaves, node.is_host_leaf)):
            if is_leaf:
                leaves[node.id] = node
            else:
                leaves.pop(node.id, None)
