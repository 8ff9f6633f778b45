"""What holds in a prefix tree after every call."""

import numpy as np

from repro.serve.kv.radix.node import Node, joined
from repro.serve.kv.radix.tree import RadixTree


def check_tree(tree: RadixTree) -> None:
    """Raise AssertionError unless every invariant and all counts hold. Visits all nodes."""
    nodes = list(tree.nodes())
    for node in (tree.root, *nodes):
        _check_node(tree, node)
    protected = sum(node.num_pages for node in nodes if node.lock_ref)
    assert tree.protected_pages == protected, f"{tree.protected_pages} protected, {protected} locked"
    for tier, pages, counted in (
        ("device", joined([node.device_pages for node in nodes]), tree.device_pages_total),
        ("host", joined([node.host_pages for node in nodes]), tree.host_pages_total),
    ):
        assert len(pages) == counted, f"{counted} {tier} pages counted, {len(pages)} in the nodes"
        assert len(np.unique(pages)) == len(pages), f"a {tier} page is in two places"
    assert len({node.id for node in nodes}) == len(nodes), "a node id is there twice"
    for leaves, expected in (
        (tree.device_leaves, {node.id: node for node in nodes if node.is_device_leaf}),
        (tree.host_leaves, {node.id: node for node in nodes if node.is_host_leaf}),
    ):
        assert leaves == expected, "the leaves are out of date"


def _check_node(tree: RadixTree, node: Node) -> None:
    assert len(node.key) == node.num_pages * tree.page_tokens, f"node {node.id}: key is not its pages"
    for pages in (node.device_pages, node.host_pages):
        assert pages is None or len(pages) == node.num_pages, f"node {node.id}: the tiers differ"
    assert node.resident or node.lock_ref == 0, f"node {node.id} is locked but evicted"
    children = node.children.values()
    for first_page, child in node.children.items():
        assert child.parent is node, f"node {child.id}: wrong parent"
        assert len(child.key) > 0, f"node {child.id} is empty"
        assert first_page == tree.first_page(child.key), f"node {child.id}: under the wrong key"
        assert node.resident or not child.resident, f"node {child.id} is resident below an evicted one"
    resident = sum(child.resident for child in children)
    assert node.resident_children == resident, f"node {node.id}: {resident} resident children miscounted"
    if node is not tree.root:
        locks = node.pins + sum(child.lock_ref for child in children)
        assert node.lock_ref == locks, f"node {node.id}: lock lost"
        host_locks = node.host_pins + sum(child.host_ref for child in children)
        assert node.host_ref == host_locks, f"node {node.id}: pin lost"
