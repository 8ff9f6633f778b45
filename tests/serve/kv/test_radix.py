"""The prefix tree: what is matched, what a pin protects across splits, what is evicted in which order."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from repro.serve.kv.page import PageAllocator
from repro.serve.kv.pool import Pages
from repro.serve.kv.radix.eviction import evict_device, evict_host, reclaim_host
from repro.serve.kv.radix.invariants import check_tree
from repro.serve.kv.radix.node import Node
from repro.serve.kv.radix.tree import Inserted, RadixTree

PAGE_TOKENS = 2
Prefix = tuple[int, ...]


def run_of(pages: str) -> list[int]:
    """Return tokens for a word: one page for each letter."""
    return [token for letter in pages for token in (ord(letter), ord(letter) + 1000)]


def pages_from(first: int, count: int) -> Pages:
    return np.arange(first, first + count, dtype=np.int32)


def grown(tree: RadixTree, word: str, first_page: int) -> Inserted:
    return tree.insert(run_of(word), pages_from(first_page, len(word)))


def backed_up(tree: RadixTree, node: Node, first_page: int) -> Node:
    tree.set_host_pages(node, pages_from(first_page, node.num_pages))
    return node


# -- match and split ----------------------------------------------------------------------------


def test_match_answers_whole_pages_only() -> None:
    tree = RadixTree(PAGE_TOKENS)
    grown(tree, "abc", 10)
    assert tree.match(run_of("abc")[:-1]).device_pages.tolist() == [10, 11]
    assert tree.match(run_of("a")[:-1]).device_node is tree.root
    wrong_inside = [*run_of("a"), ord("b"), 7]
    assert tree.match(wrong_inside).device_pages.tolist() == [10]
    check_tree(tree)


def test_match_of_nothing_is_the_root() -> None:
    match = RadixTree(PAGE_TOKENS).match([])
    assert match.device_node is match.host_node
    assert match.device_node.parent is None
    assert (len(match.device_pages), match.host_hit_pages) == (0, 0)


def test_match_splits_at_the_page_where_it_ends_and_the_lower_part_keeps_the_node() -> None:
    tree = RadixTree(PAGE_TOKENS)
    whole = grown(tree, "abcd", 10).node
    backed_up(tree, whole, 50)
    upper = tree.match(run_of("abx")).device_node
    assert whole.parent is upper
    assert (upper.key.tolist(), whole.key.tolist()) == (run_of("ab"), run_of("cd"))
    assert upper.device_pages is not None and upper.host_pages is not None
    assert (upper.device_pages.tolist(), upper.host_pages.tolist()) == ([10, 11], [50, 51])
    assert tree.match(run_of("abcd")).device_pages.tolist() == [10, 11, 12, 13]
    check_tree(tree)


def test_match_goes_on_through_evicted_nodes() -> None:
    tree = RadixTree(PAGE_TOKENS)
    grown(tree, "ab", 10)
    leaf = grown(tree, "abcde", 10).node
    backed_up(tree, leaf, 50)
    tree.drop_device_pages(leaf)
    match = tree.match(run_of("abcd"))
    assert match.device_pages.tolist() == [10, 11]
    assert match.host_hit_pages == 2
    assert match.host_node.evicted_path() == (match.device_node, [match.host_node])
    ancestor, path = leaf.evicted_path()
    assert (ancestor, path) == (match.device_node, [match.host_node, leaf])
    assert ancestor.evicted_path() == (ancestor, [])
    check_tree(tree)


# -- insert -------------------------------------------------------------------------------------


def test_insert_hands_back_other_pages_but_never_the_trees_own() -> None:
    tree = RadixTree(PAGE_TOKENS)
    grown(tree, "ab", 10)
    again = tree.insert(run_of("abcd"), np.array([10, 21, 22, 23], np.int32))
    assert again.duplicate_pages.tolist() == [21]
    assert again.new_pages.tolist() == [22, 23]
    assert tree.match(run_of("abcd")).device_pages.tolist() == [10, 11, 22, 23]
    check_tree(tree)


def test_insert_makes_an_evicted_prefix_resident_and_leaves_the_rest_evicted() -> None:
    tree = RadixTree(PAGE_TOKENS)
    leaf = backed_up(tree, grown(tree, "abcd", 10).node, 50)
    tree.drop_device_pages(leaf)
    inserted = grown(tree, "abx", 20)
    assert (inserted.new_pages.tolist(), len(inserted.duplicate_pages)) == ([20, 21, 22], 0)
    assert leaf.parent is not None and leaf.parent.resident and leaf.parent.backed_up
    assert not leaf.resident
    assert tree.match(run_of("abcd")).host_hit_pages == 2
    assert (tree.device_pages_total, tree.host_pages_total) == (3, 4)
    check_tree(tree)


@pytest.mark.parametrize("tokens", [5, 4, 8])
def test_insert_refuses_tokens_that_are_not_the_pages(tokens: int) -> None:
    with pytest.raises(AssertionError, match=f"{tokens} tokens for 3 pages of 2"):
        RadixTree(PAGE_TOKENS).insert(list(range(tokens)), pages_from(0, 3))


def test_insert_keeps_nothing_of_the_callers_arrays() -> None:
    tree = RadixTree(PAGE_TOKENS)
    tokens, pages = np.array(run_of("ab"), np.int32), pages_from(10, 2)
    tree.insert(tokens, pages)
    tokens[:], pages[:] = 0, 0
    assert tree.match(run_of("ab")).device_pages.tolist() == [10, 11]


# -- pins ---------------------------------------------------------------------------------------


def test_pin_holds_across_a_split_and_unpin_releases_both_parts() -> None:
    tree = RadixTree(PAGE_TOKENS)
    node = grown(tree, "abcd", 10).node
    tree.pin(node)
    grown(tree, "abx", 20)
    assert (tree.protected_pages, tree.evictable_pages) == (4, 1)
    assert evict_device(tree, 9).device_pages.tolist() == [22]
    check_tree(tree)
    tree.unpin(node)
    assert (tree.protected_pages, tree.evictable_pages) == (0, 4)
    assert sorted(evict_device(tree, 9).device_pages.tolist()) == [10, 11, 12, 13]
    check_tree(tree)


def test_pin_after_a_split_protects_the_upper_part_once() -> None:
    tree = RadixTree(PAGE_TOKENS)
    lower = grown(tree, "abcd", 10).node
    upper = tree.match(run_of("ab")).device_node
    tree.pin(upper)
    tree.pin(lower)
    tree.unpin(upper)
    assert tree.protected_pages == 4
    with pytest.raises(AssertionError, match="not pinned itself"):
        tree.unpin(upper)
    tree.unpin(lower)
    with pytest.raises(AssertionError, match="not pinned"):
        tree.unpin(lower)


def test_host_pin_holds_across_a_split() -> None:
    tree = RadixTree(PAGE_TOKENS)
    leaf = backed_up(tree, grown(tree, "abcd", 10).node, 50)
    tree.drop_device_pages(leaf)
    tree.pin_host(leaf)
    tree.match(run_of("ab"))
    assert len(evict_host(tree, 9)) == 0
    tree.unpin_host(leaf)
    assert evict_host(tree, 9).tolist() == [52, 53, 50, 51]
    check_tree(tree)


def test_pin_of_an_evicted_or_deleted_node_raises() -> None:
    tree = RadixTree(PAGE_TOKENS)
    evicted = backed_up(tree, grown(tree, "a", 10).node, 50)
    deleted = grown(tree, "b", 20).node
    evict_device(tree, 9)
    with pytest.raises(AssertionError, match="not resident"):
        tree.pin(evicted)
    with pytest.raises(AssertionError, match="was deleted"):
        tree.pin(deleted)


# -- eviction -----------------------------------------------------------------------------------


def test_device_eviction_takes_least_recently_used_leaves_and_stops_when_enough() -> None:
    tree = RadixTree(PAGE_TOKENS)
    for first_page, word in ((10, "aa"), (20, "bb"), (30, "cc")):
        grown(tree, word, first_page)
    tree.match(run_of("aa"))
    assert evict_device(tree, 3).device_pages.tolist() == [20, 21, 30, 31]
    assert tree.evictable_pages == 2
    check_tree(tree)


def test_a_parent_is_a_leaf_once_its_last_resident_child_is_gone() -> None:
    tree = RadixTree(PAGE_TOKENS)
    grown(tree, "abc", 10)
    tree.insert(run_of("abd"), np.array([10, 11, 20], np.int32))
    evicted = evict_device(tree, 9)
    assert evicted.device_pages.tolist() == [12, 20, 10, 11]
    assert not list(tree.nodes())
    assert not tree.root.children


def test_a_parent_waits_for_its_turn_when_another_leaf_is_older() -> None:
    tree = RadixTree(PAGE_TOKENS)
    grown(tree, "ab", 10)
    grown(tree, "c", 20)
    tree.match(run_of("a"))
    assert evict_device(tree, 2).device_pages.tolist() == [11, 20]
    assert evict_device(tree, 1).device_pages.tolist() == [10]


def test_equal_age_is_decided_by_the_lower_id() -> None:
    tree = RadixTree(PAGE_TOKENS)
    nodes = [grown(tree, word, first_page).node for word, first_page in (("a", 10), ("b", 20), ("c", 30))]
    for node in nodes:
        node.last_access = 7
    assert evict_device(tree, 2).device_pages.tolist() == [10, 20]


def test_eviction_keeps_backed_up_nodes_and_deletes_the_others() -> None:
    tree = RadixTree(PAGE_TOKENS)
    kept = backed_up(tree, grown(tree, "a", 10).node, 50)
    gone = grown(tree, "b", 20).node
    evicted = evict_device(tree, 2)
    assert evicted.device_pages.tolist() == [10, 20]
    assert kept.parent is tree.root and not kept.resident and gone.parent is None
    assert tree.match(run_of("a")).host_hit_pages == 1
    assert tree.match(run_of("b")).host_node is tree.root
    check_tree(tree)


def test_deleting_a_node_hands_back_the_host_copies_below_it() -> None:
    tree = RadixTree(PAGE_TOKENS)
    leaf = grown(tree, "abcd", 10).node
    tree.match(run_of("ab"))
    backed_up(tree, leaf, 50)
    tree.drop_device_pages(leaf)
    evicted = evict_device(tree, 1)
    assert evicted.device_pages.tolist() == [10, 11]
    assert evicted.host_pages.tolist() == [50, 51]
    assert not list(tree.nodes())
    check_tree(tree)


def test_a_node_above_a_host_copy_in_use_is_not_deleted() -> None:
    tree = RadixTree(PAGE_TOKENS)
    leaf = grown(tree, "abcd", 10).node
    tree.match(run_of("ab"))
    backed_up(tree, leaf, 50)
    tree.drop_device_pages(leaf)
    tree.pin_host(leaf)
    assert len(evict_device(tree, 1).device_pages) == 0
    tree.unpin_host(leaf)
    assert len(evict_device(tree, 1).device_pages) == 2


def test_write_back_holds_a_node_until_its_ack_and_counts_it_as_pending() -> None:
    tree = RadixTree(PAGE_TOKENS)
    old = grown(tree, "ab", 10).node
    young = grown(tree, "cd", 20).node

    def back_up(node: Node) -> bool:
        backed_up(tree, node, 50)
        tree.pin(node)
        return True

    first = evict_device(tree, 2, back_up=back_up)
    assert len(first.device_pages) == 0
    assert old.resident and not young.backed_up, "enough is pending: the younger one is left alone"
    assert evict_device(tree, 2).device_pages.tolist() == [20, 21], "before the ack only others can go"
    tree.unpin(old)
    assert evict_device(tree, 2, back_up=back_up).device_pages.tolist() == [10, 11]
    assert not old.resident and old.backed_up
    check_tree(tree)


def test_write_back_that_declines_lets_the_node_be_deleted() -> None:
    tree = RadixTree(PAGE_TOKENS)
    node = grown(tree, "ab", 10).node
    assert evict_device(tree, 1, back_up=lambda node: False).device_pages.tolist() == [10, 11]
    assert node.parent is None


def test_host_eviction_takes_only_evicted_leaves_in_order_of_use() -> None:
    tree = RadixTree(PAGE_TOKENS)
    resident = backed_up(tree, grown(tree, "a", 10).node, 50)
    for word, first_page in (("bc", 20), ("de", 30)):
        tree.drop_device_pages(backed_up(tree, grown(tree, word, first_page).node, first_page + 40))
    tree.match(run_of("b"))
    assert evict_host(tree, 1).tolist() == [61], "the lower part of bc was not used by the match"
    assert [tree.match(run_of(word)).host_hit_pages for word in ("d", "b")] == [1, 1]
    assert evict_host(tree, 9).tolist() == [71, 70, 60]
    assert resident.backed_up
    check_tree(tree)


def test_reset_hands_back_all_pages_and_refuses_while_pinned() -> None:
    tree = RadixTree(PAGE_TOKENS)
    node = backed_up(tree, grown(tree, "ab", 10).node, 50)
    tree.pin(node)
    with pytest.raises(AssertionError, match="pinned"):
        tree.reset()
    tree.unpin(node)
    device_pages, host_pages = tree.reset()
    assert (device_pages.tolist(), host_pages.tolist()) == ([10, 11], [50, 51])
    assert (tree.device_pages_total, tree.host_pages_total) == (0, 0)
    with pytest.raises(AssertionError, match="was deleted"):
        tree.pin(node)
    check_tree(tree)


# -- between the tiers --------------------------------------------------------------------------


def test_pages_move_only_where_they_may() -> None:
    tree = RadixTree(PAGE_TOKENS)
    lower = grown(tree, "ab", 10).node
    upper = tree.match(run_of("a")).device_node
    with pytest.raises(AssertionError, match="no host copy"):
        tree.drop_device_pages(lower)
    backed_up(tree, upper, 50)
    backed_up(tree, lower, 51)
    with pytest.raises(AssertionError, match="backed up already"):
        backed_up(tree, lower, 60)
    with pytest.raises(AssertionError, match="resident children"):
        tree.drop_device_pages(upper)
    tree.pin(lower)
    with pytest.raises(AssertionError, match="locked by 1"):
        tree.drop_device_pages(lower)
    tree.unpin(lower)
    tree.drop_device_pages(lower)
    tree.drop_device_pages(upper)
    with pytest.raises(AssertionError, match="set it first"):
        tree.set_device_pages(lower, pages_from(20, 1))
    with pytest.raises(AssertionError, match="2 pages for the 1"):
        tree.set_device_pages(upper, pages_from(20, 2))
    tree.set_device_pages(upper, pages_from(20, 1))
    with pytest.raises(AssertionError, match="resident already"):
        tree.set_device_pages(upper, pages_from(21, 1))
    check_tree(tree)


def test_host_eviction_takes_the_younger_node_when_it_was_used_longer_ago() -> None:
    tree = RadixTree(PAGE_TOKENS)
    for word, first_page in (("a", 10), ("b", 20)):
        tree.drop_device_pages(backed_up(tree, grown(tree, word, first_page).node, first_page + 40))
    tree.match(run_of("a"))
    assert evict_host(tree, 1).tolist() == [60]


def test_reclaiming_takes_host_copies_of_resident_nodes_and_those_that_could_be_evicted_next_last() -> None:
    tree = RadixTree(PAGE_TOKENS)
    leaf = backed_up(tree, grown(tree, "a", 10).node, 50)
    held = backed_up(tree, grown(tree, "bc", 20).node, 60)
    read = backed_up(tree, grown(tree, "d", 30).node, 70)
    evicted = backed_up(tree, grown(tree, "e", 40).node, 80)
    tree.pin(held)
    tree.pin_host(read)
    tree.drop_device_pages(evicted)
    assert reclaim_host(tree, 1).tolist() == [60, 61]
    assert not held.backed_up and leaf.backed_up
    assert reclaim_host(tree, 9).tolist() == [50]
    assert read.backed_up and evicted.backed_up and tree.host_pages_total == 2
    check_tree(tree)


def test_both_parts_of_a_split_keep_the_hits() -> None:
    tree = RadixTree(PAGE_TOKENS)
    leaf = grown(tree, "abc", 10).node
    grown(tree, "abc", 10)
    upper = tree.match(run_of("a")).device_node
    assert leaf.due_for_backup(2) == [upper, leaf]


def test_backing_up_starts_at_the_threshold_and_never_below_a_node_without_copy() -> None:
    tree = RadixTree(PAGE_TOKENS)
    tree.insert(run_of("ab"), pages_from(10, 2), counted_pages=2)
    leaf = grown(tree, "abc", 10).node
    upper = leaf.parent
    assert upper is not None
    assert (upper.hit_count, leaf.hit_count) == (1, 1)
    assert leaf.due_for_backup(1) == [upper, leaf]
    assert leaf.due_for_backup(2) == []
    leaf.hit_count = 2
    assert leaf.due_for_backup(2) == [], "its parent is not due"
    backed_up(tree, upper, 50)
    assert leaf.due_for_backup(2) == [leaf]
    backed_up(tree, leaf, 60)
    assert leaf.due_for_backup(1) == []


# -- check can fail -----------------------------------------------------------------------------


def damaged(tree: RadixTree, node: Node, how: str) -> None:
    assert node.parent is not None and node.device_pages is not None
    match how:
        case "in two places":
            node.device_pages[0] = node.parent.device_pages[0]  # type: ignore[index]
        case "lock lost":
            node.lock_ref = 1
        case "wrong parent":
            node.parent = tree.root
        case "wrong key":
            node.key = node.key + 1
        case "key is not its pages":
            node.key = node.key[:-1]
        case "below an evicted one":
            node.parent.host_pages, node.parent.device_pages = node.parent.device_pages, None
            tree.root.resident_children -= 1
        case "resident children miscounted":
            node.parent.resident_children += 1
        case "device pages counted":
            tree.evictable_pages += 1
        case "protected":
            tree.evictable_pages, tree.protected_pages = 2, 2
        case _:
            tree.device_leaves.clear()


@pytest.mark.parametrize(
    "how",
    [
        "in two places",
        "lock lost",
        "wrong parent",
        "wrong key",
        "key is not its pages",
        "below an evicted one",
        "resident children miscounted",
        "device pages counted",
        "protected",
        "leaves are out of date",
    ],
)
def test_check_finds_damage(how: str) -> None:
    tree = RadixTree(PAGE_TOKENS)
    grown(tree, "ab", 10)
    leaf = grown(tree, "abcd", 10).node
    check_tree(tree)
    damaged(tree, leaf, how)
    with pytest.raises(AssertionError, match=how):
        check_tree(tree)


# -- against a model ----------------------------------------------------------------------------

# Two kinds of pages and a tail that fills none: words share prefixes often.
words = st.builds(
    lambda pages, tail: [token for page in pages for token in (7, page)] + tail,
    st.lists(st.integers(0, 1), min_size=1, max_size=6),
    st.sampled_from([[], [7]]),
)


class TreeAgainstModel(RuleBasedStateMachine):
    """The model is one dict per tier, from each cached prefix to its last page; pages come from real pools.

    The pools are small, so that every rule meets pressure. What is evicted is the tree's choice;
    the model checks that it was allowed, that it was enough, and that nothing else changed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tree = RadixTree(PAGE_TOKENS)
        self.device_pool = PageAllocator(12, "lifo")
        self.host_pool = PageAllocator(14, "fifo")
        self.device: dict[Prefix, int] = {}
        self.host: dict[Prefix, int] = {}
        self.pins: list[tuple[Node, Prefix]] = []
        self.writes: list[tuple[Node, Prefix]] = []  # back-ups without ack
        self.loads: list[tuple[Node, Node, Prefix]] = []  # (last node, resident ancestor, prefix of the first)

    # what the engine would do

    @rule(tokens=words, reuses_hit=st.booleans(), write_back=st.booleans())
    def insert(self, tokens: list[int], reuses_hit: bool, write_back: bool) -> None:
        tokens = tokens[: len(tokens) // PAGE_TOKENS * PAGE_TOKENS]
        match = self.tree.match(tokens)
        hit_pages = match.device_pages if reuses_hit else match.device_pages[:0]
        self.tree.pin(match.device_node)
        fresh = self.allocated(len(tokens) // PAGE_TOKENS - len(hit_pages), write_back)
        if fresh is not None:
            given = np.concatenate([hit_pages, fresh])
            inserted = self.tree.insert(tokens, given)
            duplicates = []
            for prefix, page in zip(prefixes(tokens), given.tolist(), strict=True):
                if self.device.setdefault(prefix, page) != page:
                    duplicates.append(page)
            assert inserted.duplicate_pages.tolist() == duplicates
            assert len(inserted.new_pages) + len(duplicates) == len(fresh)
            assert self.tree.match(tokens).device_pages.tolist() == [self.device[prefix] for prefix in prefixes(tokens)]
            self.device_pool.free(inserted.duplicate_pages)
        self.tree.unpin(match.device_node)
        if fresh is not None and not write_back:
            self.write_through(tokens)

    @rule(tokens=words)
    def match(self, tokens: list[int]) -> None:
        match = self.tree.match(tokens)
        resident = [self.device[prefix] for prefix in prefixes(tokens) if prefix in self.device]
        cached = [prefix for prefix in prefixes(tokens) if prefix in self.device or prefix in self.host]
        assert match.device_pages.tolist() == resident
        assert match.host_hit_pages == len(cached) - len(resident)
        assert spelled(match.host_node) == (cached[-1] if cached else ())

    @rule(tokens=words)
    def pin(self, tokens: list[int]) -> None:
        node = self.tree.match(tokens).device_node
        self.tree.pin(node)
        self.pins.append((node, spelled(node)))

    @precondition(lambda self: self.pins)
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        node, prefix = self.pins.pop(data.draw(st.integers(0, len(self.pins) - 1)))
        assert spelled(node) == prefix, "a split moved a pinned node"
        self.tree.unpin(node)

    @rule(tokens=words)
    def write_through(self, tokens: list[int]) -> None:
        for node in self.tree.match(tokens).device_node.due_for_backup(1):
            assert node.parent is not None and node.parent.backed_up
            if not self.back_up(node):
                break

    @precondition(lambda self: self.writes)
    @rule()
    def ack_write(self) -> None:
        node, _ = self.writes.pop(0)
        self.tree.unpin_host(node)
        self.tree.unpin(node)

    @precondition(lambda self: self.host.keys() - self.device.keys())
    @rule(data=st.data(), write_back=st.booleans())
    def load_back(self, data: st.DataObject, write_back: bool) -> None:
        evicted = [prefix for prefix in self.host if prefix not in self.device]
        match = self.tree.match(data.draw(st.sampled_from(sorted(evicted))))
        ancestor, nodes = match.host_node.evicted_path()
        assert ancestor is match.device_node
        first = spelled(nodes[0])
        self.tree.pin(ancestor)
        self.tree.pin_host(match.host_node)
        self.loads.append((match.host_node, ancestor, first))
        pages = self.allocated(match.host_hit_pages, write_back)
        if pages is None:
            self.loads.pop()
            self.tree.unpin_host(match.host_node)
            self.tree.unpin(ancestor)
            return
        loaded = [prefix for prefix in prefixes(spelled(match.host_node)) if prefix not in self.device]
        self.device.update(zip(loaded, pages.tolist(), strict=True))
        for node, start in zip(nodes, np.cumsum([0] + [node.num_pages for node in nodes]), strict=False):
            self.tree.set_device_pages(node, pages[start : start + node.num_pages])
        self.tree.pin(match.host_node)

    @precondition(lambda self: self.loads)
    @rule()
    def ack_load(self) -> None:
        node, ancestor, _ = self.loads.pop(0)
        self.tree.unpin_host(node)
        self.tree.unpin(node)
        self.tree.unpin(ancestor)

    @rule(num_pages=st.integers(1, 12))
    def evict_device(self, num_pages: int) -> None:
        self.evict(num_pages, write_back=False)

    @rule(num_pages=st.integers(1, 12))
    def calm_then_evict_device(self, num_pages: int) -> None:
        while self.writes:
            self.ack_write()
        while self.loads:
            self.ack_load()
        while self.pins:
            self.tree.unpin(self.pins.pop()[0])
        self.evict(num_pages, write_back=False)

    @rule(num_pages=st.integers(1, 8))
    def evict_host(self, num_pages: int) -> None:
        freed = evict_host(self.tree, num_pages)
        self.forget_host(freed)
        left = [node for node in self.nodes() if not node.resident and not node.children and not node.host_ref]
        assert len(freed) >= num_pages or not left

    @rule(num_pages=st.integers(1, 8))
    def reclaim_host(self, num_pages: int) -> None:
        freed = reclaim_host(self.tree, num_pages)
        self.forget_host(freed)
        left = [node for node in self.nodes() if node.resident and node.backed_up and not node.host_ref]
        assert len(freed) >= num_pages or not left

    @precondition(lambda self: not (self.pins or self.writes or self.loads))
    @rule()
    def reset(self) -> None:
        device_pages, host_pages = self.tree.reset()
        self.device_pool.free(device_pages)
        self.host_pool.free(host_pages)
        self.device.clear()
        self.host.clear()

    # its parts

    def allocated(self, num_pages: int, write_back: bool) -> Pages | None:
        short = num_pages - self.device_pool.free_pages
        if short > 0:
            self.evict(short, write_back)
        return self.device_pool.alloc(num_pages, "request")

    def evict(self, num_pages: int, write_back: bool) -> None:
        pending = len(self.writes)
        evicted = evict_device(self.tree, num_pages, back_up=self.back_up if write_back else None)
        by_page = {page: prefix for prefix, page in self.device.items()}
        for page in evicted.device_pages.tolist():
            prefix = by_page[page]
            assert not any(pinned[: len(prefix)] == prefix for pinned in self.pinned()), "evicted under a pin"
            del self.device[prefix]
        self.device_pool.free(evicted.device_pages)
        self.forget_host(evicted.host_pages)
        gained = len(evicted.device_pages) + sum(node.num_pages for node, _ in self.writes[pending:])
        assert gained >= num_pages or self.tree.evictable_pages == 0

    def pinned(self) -> list[Prefix]:
        return [prefix for _, prefix in self.pins + self.writes] + [spelled(node) for _, node, _ in self.loads]

    def back_up(self, node: Node) -> bool:
        short = node.num_pages - self.host_pool.free_pages
        if short > 0:
            self.forget_host(evict_host(self.tree, short))
        pages = self.host_pool.alloc(node.num_pages, "write")
        if pages is None:
            return False
        self.tree.set_host_pages(node, pages)
        self.tree.pin(node)
        self.tree.pin_host(node)
        self.writes.append((node, spelled(node)))
        covered = prefixes(spelled(node))[-node.num_pages :]
        self.host.update(zip(covered, pages.tolist(), strict=True))
        return True

    def forget_host(self, pages: Pages) -> None:
        by_page = {page: prefix for prefix, page in self.host.items()}
        for page in pages.tolist():
            prefix = by_page[page]
            in_use = [spelled(node) for node, _, _ in self.loads] + [prefix for _, prefix in self.writes]
            assert not any(copied[: len(prefix)] == prefix for copied in in_use), "freed under a copy"
            del self.host[prefix]
        self.host_pool.free(pages)

    def nodes(self) -> Iterator[Node]:
        stack = list(self.tree.root.children.values())
        while stack:
            node = stack.pop()
            yield node
            stack += node.children.values()

    @invariant()
    def agrees(self) -> None:
        check_tree(self.tree)
        self.device_pool.check()
        self.host_pool.check()
        assert self.device_pool.used_pages == self.tree.device_pages_total == len(self.device)
        assert self.host_pool.used_pages == self.tree.host_pages_total == len(self.host)
        device: dict[Prefix, int] = {}
        host: dict[Prefix, int] = {}
        for node in self.nodes():
            covered = prefixes(spelled(node))[-node.num_pages :]
            for pages, found in ((node.device_pages, device), (node.host_pages, host)):
                if pages is not None:
                    found.update(zip(covered, pages.tolist(), strict=True))
        assert (device, host) == (self.device, self.host)
        locked = {prefix for pinned in self.pinned() for prefix in prefixes(pinned)}
        locked |= {prefix for node, _, _ in self.loads for prefix in prefixes(spelled(node))}
        assert self.tree.protected_pages == len(locked)


def prefixes(tokens: list[int] | Prefix) -> list[Prefix]:
    """Return the prefixes of one page, two pages, ... of these tokens."""
    return [tuple(tokens[:stop]) for stop in range(PAGE_TOKENS, len(tokens) + 1, PAGE_TOKENS)]


def spelled(node: Node) -> Prefix:
    """Return all tokens from the root to the end of the node."""
    tokens: list[int] = []
    while node.parent is not None:
        tokens = node.key.tolist() + tokens
        node = node.parent
    return tuple(tokens)


TestTreeAgainstModel = TreeAgainstModel.TestCase
TestTreeAgainstModel.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
