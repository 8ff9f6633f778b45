"""The prefix tree: which tokens are cached in which pages, on the device, on the host, or both.

A node holds a run of whole pages. It is *resident* when it has device pages and *backed up* when
it has host pages; each node is at least one of them. A resident node never hangs below one that is
not, so each path from the root reads

    root --- resident ... resident --- evicted ... evicted
             device (and host) pages    host pages only
    |<-------- device hit ---------->|<---- host hit ---->|

The tree owns no memory: it takes page numbers in, gives them back when it lets go of them, and the
caller frees them. Pins are counted on the whole path to the root, so that a split never changes what
a pin protects: the lower part keeps the node's identity and the upper part, a new node, its counts.

Time is a counter, one tick for each match or insert, and ties go to the older node: the same calls
give the same answers. The operations follow SGLang's HiRadixCache in what they do.
"""

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from repro.serve.kv.page import Pages

TokenRun = npt.NDArray[np.int64]
TokensLike = Sequence[int] | TokenRun


@dataclass(eq=False, slots=True)
class Node:
    """A run of cached pages. Only the tree changes it; callers read it."""

    id: int  # counts up, never used again
    key: TokenRun  # the tokens of whole pages, or what stands for them (`spec.keys`)
    parent: "Node | None" = field(repr=False)  # None: the root, or deleted from the tree
    device_pages: Pages | None = None  # None: evicted from the device
    host_pages: Pages | None = None  # None: not backed up
    children: dict[bytes, "Node"] = field(default_factory=dict, repr=False)  # by first page of tokens
    resident_children: int = 0
    lock_ref: int = 0  # pins of this node and of nodes below it
    host_ref: int = 0  # host pins of this node and of nodes below it
    hit_count: int = 0
    last_access: int = 0
    loading: bool = False  # a load-back into the device pages has not been acknowledged

    @property
    def resident(self) -> bool:
        """Return whether the node has device pages."""
        return self.device_pages is not None

    @property
    def backed_up(self) -> bool:
        """Return whether the node has host pages; they may still be being written while it is locked."""
        return self.host_pages is not None

    @property
    def num_pages(self) -> int:
        """Return how many pages of tokens the node holds."""
        pages = self.host_pages if self.device_pages is None else self.device_pages
        assert pages is not None, f"node {self.id} is on neither tier"
        return len(pages)


@dataclass(frozen=True, eq=False)
class Match:
    """The longest cached prefix. Valid until the next eviction or reset unless the nodes are pinned."""

    device_pages: Pages  # of the resident part, in token order
    device_node: Node  # where the resident part ends; the root for no hit
    host_node: Node  # where the evicted part ends; `device_node` when there is none
    host_hit_pages: int  # pages of the evicted part, between the two nodes


@dataclass(frozen=True, eq=False)
class Inserted:
    """What became of the inserted pages."""

    node: Node  # where the inserted tokens end
    pages: Pages  # the tree's pages for all these tokens: what the caller's row must hold from now on
    new_pages: Pages  # given pages that are now the tree's
    duplicate_pages: Pages  # given pages that the tree has elsewhere: the caller's to free


@dataclass(frozen=True, eq=False)
class Evicted:
    """What an eviction let go of. All pages are the caller's to free."""

    freed_pages: Pages  # device pages, in the order of eviction
    freed_host_pages: Pages  # of host copies that hung below a deleted node
    evicted_nodes: tuple[Node, ...]  # kept, backed up
    deleted_nodes: tuple[Node, ...]  # gone
    pending_pages: int  # pages of nodes that `back_up` took: free after their ack and another eviction


class RadixTree:
    """The prefix tree of one engine over a device tier and a host tier."""

    def __init__(self, page_tokens: int) -> None:
        assert page_tokens > 0, f"a page of {page_tokens} tokens"
        self.page_tokens = page_tokens
        self._clock = 0
        self._node_count = 0
        self._clear()

    # -- reading and growing --------------------------------------------------------------------

    def match(self, tokens: TokensLike) -> Match:
        """Return the longest cached prefix in whole pages, the last page that is not full left out.

        Splits the node that the match ends in, and makes the path the most recently used. The
        caller leaves out the prompt's last token, which must be computed to have logits.
        """
        path = self._walk(self._whole_pages(tokens))
        self._touch(path)
        resident = [node for node in path if node.resident]
        evicted = path[len(resident) :]
        return Match(
            device_pages=_joined([node.device_pages for node in resident]),
            device_node=resident[-1] if resident else self.root,
            host_node=path[-1] if path else self.root,
            host_hit_pages=sum(node.num_pages for node in evicted),
        )

    def insert(self, tokens: TokensLike, pages: Pages, *, counted_pages: int = 0) -> Inserted:
        """Cache these tokens in these device pages, one for each page of tokens.

        Where the tokens are resident the tree keeps its own pages; a given page that is another
        one comes back as duplicate, a given page that is the tree's own does not. An evicted node
        becomes resident in the given pages and keeps its host copy. Splits as `match` does, makes
        the path the most recently used, and counts one hit for each node on it but those within the
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
        start = 0  # in pages
        for node in path:
            given = pages[start : start + node.num_pages]
            start += node.num_pages
            if node.device_pages is None:
                self._make_resident(node, given)
                taken.append(given)
            else:
                duplicates.append(given[given != node.device_pages])
        if start < len(pages):
            parent = path[-1] if path else self.root
            path.append(self._add_leaf(parent, run[start * self.page_tokens :], pages[start:]))
            taken.append(pages[start:])
        self._touch(path)
        self._count_hits(path, counted_pages)
        return Inserted(
            node=path[-1] if path else self.root,
            pages=_joined([node.device_pages for node in path]),
            new_pages=_joined(taken),
            duplicate_pages=_joined(duplicates),
        )

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
            parent = path[-1] if path else self.root
            path.append(self._add_host_leaf(parent, run[covered * self.page_tokens :], taken))
        self._touch(path)
        return left

    def nodes_to_back_up(self, node: Node, threshold: int) -> list[Node]:
        """Return the nodes on the path to `node` that are due for a host copy, top-down.

        Due is a node with at least `threshold` hits (1: write_through, 2: selective) whose parent
        is backed up or comes before it here. Changes nothing; valid until the next change.
        """
        due: list[Node] = []
        for each in self._path_down(node):
            if each.backed_up:
                continue
            if each.hit_count < threshold:
                break
            due.append(each)
        return due

    # -- pins -----------------------------------------------------------------------------------

    def pin(self, node: Node) -> None:
        """Protect the device pages of `node` and of all its ancestors until `unpin`.

        Raises AssertionError when the node is not resident. Pinning the root does nothing.
        """
        assert node.resident, f"pin of node {node.id}, which is not resident"
        for each in self._path_up(node):
            if each.lock_ref == 0:
                self._evictable_pages -= each.num_pages
                self._protected_pages += each.num_pages
            each.lock_ref += 1
            self._refresh_leaf(each)

    def unpin(self, node: Node) -> None:
        """Undo one `pin` of the same node. Raises AssertionError when there is none left."""
        path = self._path_up(node)
        assert not path or node.lock_ref > sum(child.lock_ref for child in node.children.values()), (
            f"unpin of node {node.id}, which is not pinned itself"
        )
        for each in path:
            each.lock_ref -= 1
            if each.lock_ref == 0:
                self._protected_pages -= each.num_pages
                self._evictable_pages += each.num_pages
            self._refresh_leaf(each)

    def pin_host(self, node: Node) -> None:
        """Protect the host pages of `node` and of its ancestors (a load-back reads them) until `unpin_host`.

        Raises AssertionError when the node is not backed up.
        """
        assert node.backed_up, f"host pin of node {node.id}, which is not backed up"
        for each in self._path_up(node):
            each.host_ref += 1
            self._refresh_leaf(each)

    def unpin_host(self, node: Node) -> None:
        """Undo one `pin_host` of the same node. Raises AssertionError when there is none left."""
        path = self._path_up(node)
        assert not path or node.host_ref > sum(child.host_ref for child in node.children.values()), (
            f"host unpin of node {node.id}, which is not host-pinned itself"
        )
        for each in path:
            each.host_ref -= 1
            self._refresh_leaf(each)

    # -- eviction -------------------------------------------------------------------------------

    def evict_device(self, num_pages: int, *, back_up: Callable[[Node], bool] | None = None) -> Evicted:
        """Let go of `num_pages` device pages or more, least recently used leaves first; fewer if locked.

        A leaf is a resident node without resident children. A backed-up one stays as evicted; another
        is deleted, with any host copies below it, unless `back_up` (write_back) takes it: then the
        callback has pinned it and given it host pages, it counts as pending, and its ack unpins it.
        The callback may call `evict_host` and `reclaim_host`, and pins nothing else; when it declines,
        the node is deleted.
        """
        leaves = [(node.last_access, node.id) for node in self._device_leaves.values()]
        heapq.heapify(leaves)
        evicted: list[Node] = []
        deleted: list[Node] = []
        freed: list[Pages] = []
        freed_host: list[Pages] = []
        freed_pages = pending_pages = 0
        while leaves and freed_pages + pending_pages < num_pages:
            node = self._device_leaves[heapq.heappop(leaves)[1]]
            if not node.backed_up and back_up is not None and back_up(node):
                assert node.backed_up and node.lock_ref > 0, f"back_up took node {node.id} without a pin"
                pending_pages += node.num_pages
                continue
            if not node.backed_up and node.host_ref > 0:
                continue  # a host copy below it is in use
            parent = self._parent(node)
            freed_pages += node.num_pages
            if node.backed_up:
                freed.append(self.drop_device_pages(node))
                evicted.append(node)
            else:
                gone = self._delete(node)
                freed += [each.device_pages for each in gone if each.device_pages is not None]
                freed_host += [each.host_pages for each in gone if each.host_pages is not None]
                deleted += gone
            if parent.id in self._device_leaves:
                heapq.heappush(leaves, (parent.last_access, parent.id))
        return Evicted(_joined(freed), _joined(freed_host), tuple(evicted), tuple(deleted), pending_pages)

    def evict_host(self, num_pages: int) -> Pages:
        """Delete evicted nodes, least recently used leaves first, and return their host pages to free.

        Returns fewer than `num_pages` when the rest is resident, host-pinned, or above such nodes.
        """
        leaves = [(node.last_access, node.id) for node in self._host_leaves.values()]
        heapq.heapify(leaves)
        freed: list[Pages] = []
        freed_pages = 0
        while leaves and freed_pages < num_pages:
            node = self._host_leaves[heapq.heappop(leaves)[1]]
            parent = self._parent(node)
            self._delete(node)
            assert node.host_pages is not None
            freed.append(node.host_pages)
            freed_pages += len(node.host_pages)
            if parent.id in self._host_leaves:
                heapq.heappush(leaves, (parent.last_access, parent.id))
        return _joined(freed)

    def reclaim_host(self, num_pages: int) -> Pages:
        """Let resident nodes go without their host copies and return those pages to free, which may be fewer.

        Leaves that `evict_device` may take come last, for they would have to be written again at once; in each part
        the least recently used are first. A host-pinned copy stays: somebody reads it, or still writes it.
        """
        copies = [node for node in self._nodes() if node.resident and node.backed_up and node.host_ref == 0]
        copies.sort(key=lambda node: (_is_device_leaf(node), node.last_access, node.id))
        freed: list[Pages] = []
        freed_pages = 0
        for node in copies:
            if freed_pages >= num_pages:
                break
            assert node.host_pages is not None
            freed.append(node.host_pages)
            freed_pages += len(node.host_pages)
            self._host_pages -= len(node.host_pages)
            node.host_pages = None
        return _joined(freed)

    def reset(self) -> tuple[Pages, Pages]:
        """Forget everything and return (device pages, host pages), all the caller's to free.

        Raises AssertionError, with no change, while anything is pinned. Old nodes are dead.
        """
        nodes = list(self._nodes())
        pinned = [node.id for node in nodes if node.lock_ref or node.host_ref]
        assert not pinned, f"reset while nodes {pinned} are pinned"
        for node in nodes:
            node.parent = None
        self._clear()
        return _joined([node.device_pages for node in nodes]), _joined([node.host_pages for node in nodes])

    # -- moving between the tiers ---------------------------------------------------------------

    def evicted_path(self, host_node: Node) -> tuple[Node, list[Node]]:
        """Return (deepest resident ancestor, evicted nodes from below it down to `host_node`).

        That is (`host_node`, []) when it is resident. Valid until the next change.
        """
        path = [node for node in self._path_down(host_node) if not node.resident]
        return (self._parent(path[0]) if path else host_node), path

    def tokens(self, node: Node) -> TokenRun:
        """Return all tokens from the root to the end of `node`."""
        return np.concatenate([np.empty(0, np.int64), *(each.key for each in self._path_down(node))])

    def host_copy(self, node: Node) -> Pages | None:
        """Return the host pages of all tokens up to the end of `node`; None where a part has no copy."""
        copies = [each.host_pages for each in self._path_down(node)]
        return None if any(pages is None for pages in copies) else _joined(copies)

    def set_device_pages(self, node: Node, pages: Pages) -> None:
        """Make an evicted node resident in `pages`, before any byte of them is valid.

        Raises AssertionError when the node is resident, its parent is not, or the count is wrong.
        The node is not pinned: the caller pins it before the next eviction.
        """
        assert not node.resident, f"node {node.id} is resident already"
        assert self._parent(node).resident, f"the parent of node {node.id} is evicted: set it first"
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
        assert not node.loading, f"node {node.id} is being loaded"
        parent = self._parent(node)
        pages = node.device_pages
        node.device_pages = None
        self._evictable_pages -= len(pages)
        parent.resident_children -= 1
        self._refresh_leaf(node)
        self._refresh_leaf(parent)
        return pages

    def set_host_pages(self, node: Node, pages: Pages) -> None:
        """Give a resident node host pages, before any byte of them is valid.

        The caller pins the node until the copy is done: as long as it is resident nobody reads
        them. Raises AssertionError when it is not resident, backed up, or the count is wrong.
        """
        assert node.resident, f"node {node.id} is not resident: nothing to copy"
        assert not node.backed_up, f"node {node.id} is backed up already"
        assert len(pages) == node.num_pages, f"{len(pages)} pages for the {node.num_pages} of node {node.id}"
        self._parent(node)
        node.host_pages = pages.copy()
        self._host_pages += len(pages)

    def start_loading(self, node: Node, ancestor: Node) -> None:
        """Mark the nodes from `node` up to but without `ancestor` as being loaded; keep them pinned."""
        for each in self._between(node, ancestor):
            assert each.lock_ref > 0, f"node {each.id} is loaded without a pin"
            each.loading = True

    def finish_loading(self, node: Node, ancestor: Node) -> None:
        """Undo `start_loading` of the same nodes, whatever splits came in between."""
        for each in self._between(node, ancestor):
            assert each.loading, f"node {each.id} is not being loaded"
            each.loading = False

    # -- counts and invariants ------------------------------------------------------------------

    @property
    def device_pages_total(self) -> int:
        """Return how many device pages the tree holds."""
        return self._evictable_pages + self._protected_pages

    @property
    def evictable_pages(self) -> int:
        """Return how many device pages are of unlocked nodes."""
        return self._evictable_pages

    @property
    def protected_pages(self) -> int:
        """Return how many device pages are of locked nodes."""
        return self._protected_pages

    @property
    def host_pages_total(self) -> int:
        """Return how many host pages the tree holds."""
        return self._host_pages

    def check(self) -> None:
        """Raise AssertionError unless every invariant and all counts hold. Visits all nodes."""
        nodes = list(self._nodes())
        for node in [self.root, *nodes]:
            self._check_node(node)
        protected = sum(node.num_pages for node in nodes if node.lock_ref)
        assert self._protected_pages == protected, f"{self._protected_pages} protected, {protected} held"
        for name, held, expected in (
            ("device", _joined([node.device_pages for node in nodes]), self.device_pages_total),
            ("host", _joined([node.host_pages for node in nodes]), self.host_pages_total),
        ):
            assert len(held) == expected, f"{expected} {name} pages counted, {len(held)} held"
            assert len(np.unique(held)) == len(held), f"a {name} page is in two places"
        assert len({node.id for node in nodes}) == len(nodes), "a node id is there twice"
        for leaves, is_leaf in (
            (self._device_leaves, _is_device_leaf),
            (self._host_leaves, _is_host_leaf),
        ):
            assert leaves == {node.id: node for node in nodes if is_leaf(node)}, "the leaves are out of date"

    def _check_node(self, node: Node) -> None:
        assert len(node.key) == node.num_pages * self.page_tokens, f"node {node.id}: key is not its pages"
        for pages in (node.device_pages, node.host_pages):
            assert pages is None or len(pages) == node.num_pages, f"node {node.id}: the tiers differ"
        assert node.resident or node.lock_ref == 0, f"node {node.id} is locked but evicted"
        assert not node.loading or node.lock_ref > 0, f"node {node.id} is loaded without a pin"
        children = list(node.children.values())
        for first_page, child in node.children.items():
            assert child.parent is node, f"node {child.id}: wrong parent"
            assert len(child.key) > 0, f"node {child.id} is empty"
            assert first_page == self._first_page(child.key), f"node {child.id}: under the wrong key"
            assert node.resident or not child.resident, f"node {child.id} is resident below an evicted one"
        resident = sum(child.resident for child in children)
        assert node.resident_children == resident, f"node {node.id}: {resident} resident children miscounted"
        if node is not self.root:
            assert node.lock_ref >= sum(child.lock_ref for child in children), f"node {node.id}: lock lost"
            assert node.host_ref >= sum(child.host_ref for child in children), f"node {node.id}: pin lost"

    # -- the tree itself ------------------------------------------------------------------------

    def _clear(self) -> None:
        none = np.empty(0, np.int32)
        self.root = Node(self._next_id(), np.empty(0, np.int64), None, device_pages=none, host_pages=none)
        self._device_leaves: dict[int, Node] = {}  # what evict_device may take, by id
        self._host_leaves: dict[int, Node] = {}  # what evict_host may take, by id
        self._evictable_pages = 0
        self._protected_pages = 0
        self._host_pages = 0

    def _next_id(self) -> int:
        self._node_count += 1
        return self._node_count

    def _whole_pages(self, tokens: TokensLike) -> TokenRun:
        length = len(tokens) - len(tokens) % self.page_tokens
        return np.array(tokens[:length], np.int64)  # a copy: nodes keep parts of it

    def _first_page(self, run: TokenRun) -> bytes:
        return run[: self.page_tokens].tobytes()

    def _walk(self, run: TokenRun) -> list[Node]:
        """Return the nodes that spell the longest cached prefix of `run`; splits the last if need be."""
        path: list[Node] = []
        node, rest = self.root, run
        while len(rest) and (child := node.children.get(self._first_page(rest))):
            shared_pages = _shared_tokens(child.key, rest) // self.page_tokens
            node = child if shared_pages == child.num_pages else self._split(child, shared_pages)
            path.append(node)
            rest = rest[len(node.key) :]
        return path

    def _split(self, node: Node, num_pages: int) -> Node:
        """Return a new node with the first `num_pages` of `node`, which stays below it with the rest.

        The new node is on the path of the match or insert that asked, which dates it.
        """
        parent = self._parent(node)
        upper_key, lower_key = np.split(node.key, [num_pages * self.page_tokens])
        upper_device, node.device_pages = _cut(node.device_pages, num_pages)
        upper_host, node.host_pages = _cut(node.host_pages, num_pages)
        upper = Node(
            id=self._next_id(),
            key=upper_key,
            parent=parent,
            device_pages=upper_device,
            host_pages=upper_host,
            children={self._first_page(lower_key): node},
            resident_children=int(node.resident),
            lock_ref=node.lock_ref,
            host_ref=node.host_ref,
            hit_count=node.hit_count,
            loading=node.loading,
        )
        parent.children[self._first_page(upper_key)] = upper
        node.key = lower_key
        node.parent = upper
        return upper

    def _add_leaf(self, parent: Node, run: TokenRun, pages: Pages) -> Node:
        node = Node(self._next_id(), run, parent)
        parent.children[self._first_page(run)] = node
        self._make_resident(node, pages)
        return node

    def _add_host_leaf(self, parent: Node, run: TokenRun, pages: Pages) -> Node:
        node = Node(self._next_id(), run, parent, host_pages=pages.copy())
        parent.children[self._first_page(run)] = node
        self._host_pages += len(pages)
        self._refresh_leaf(node)
        self._refresh_leaf(parent)
        return node

    def _make_resident(self, node: Node, pages: Pages) -> None:
        parent = self._parent(node)
        node.device_pages = pages.copy()
        self._evictable_pages += len(pages)
        parent.resident_children += 1
        self._refresh_leaf(node)
        self._refresh_leaf(parent)

    def _delete(self, node: Node) -> list[Node]:
        """Cut off an unpinned node with all below it, none of that resident; return them, `node` first."""
        parent = self._parent(node)
        del parent.children[self._first_page(node.key)]
        parent.resident_children -= node.resident
        gone = [node]
        for each in gone:  # grows while it runs: breadth first
            gone.extend(each.children.values())
        for each in gone:
            assert each.lock_ref == each.host_ref == 0, f"delete of node {each.id}, which is pinned"
            self._evictable_pages -= 0 if each.device_pages is None else len(each.device_pages)
            self._host_pages -= 0 if each.host_pages is None else len(each.host_pages)
            each.parent = None
            self._refresh_leaf(each)
        self._refresh_leaf(parent)
        return gone

    def _touch(self, path: list[Node]) -> None:
        self._clock += 1
        for node in path:
            node.last_access = self._clock

    @staticmethod
    def _count_hits(path: list[Node], counted_pages: int) -> None:
        start = 0  # in pages
        for node in path:
            node.hit_count += start >= counted_pages
            start += node.num_pages

    def _refresh_leaf(self, node: Node) -> None:
        """Bring the two sets of leaves up to date with what `node` is now."""
        for leaves, is_leaf in (
            (self._device_leaves, _is_device_leaf),
            (self._host_leaves, _is_host_leaf),
        ):
            if is_leaf(node):
                leaves[node.id] = node
            else:
                leaves.pop(node.id, None)

    def _parent(self, node: Node) -> Node:
        assert node.parent is not None, f"node {node.id} is the root or was deleted"
        return node.parent

    def _path_up(self, node: Node) -> list[Node]:
        """Return `node` and its ancestors without the root. Raises AssertionError when it was deleted."""
        path: list[Node] = []
        while node is not self.root:
            path.append(node)
            node = self._parent(node)
        return path

    def _path_down(self, node: Node) -> list[Node]:
        return self._path_up(node)[::-1]

    def _between(self, node: Node, ancestor: Node) -> list[Node]:
        """Return the nodes from `node` up to but without its `ancestor`."""
        path = self._path_up(node)
        if ancestor is self.root:
            return path
        assert ancestor in path, f"node {ancestor.id} is no ancestor of node {node.id}"
        return path[: path.index(ancestor)]

    def _nodes(self) -> Iterator[Node]:
        """Yield all nodes without the root, parents before their children."""
        stack = list(self.root.children.values())
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())


def _is_device_leaf(node: Node) -> bool:
    return node.parent is not None and node.resident and node.resident_children == 0 and node.lock_ref == 0


def _is_host_leaf(node: Node) -> bool:
    return node.parent is not None and not node.resident and not node.children and node.host_ref == 0


def _shared_tokens(one: TokenRun, other: TokenRun) -> int:
    length = min(len(one), len(other))
    differing = np.flatnonzero(one[:length] != other[:length])
    return int(differing[0]) if len(differing) else length


def _cut(pages: Pages | None, at: int) -> tuple[Pages | None, Pages | None]:
    return (None, None) if pages is None else (pages[:at], pages[at:])


def _joined(parts: Sequence[Pages | None]) -> Pages:
    """Return the parts that there are in one new array."""
    held = [part for part in parts if part is not None]
    return np.concatenate(held) if held else np.empty(0, np.int32)
