"""The free list: who holds which page, in which order pages come back, what is refused."""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from repro.serve.kv.page import NOBODY, FreeListPolicy, PageAllocator, PageChange, Pages

POLICIES: tuple[FreeListPolicy, ...] = ("lifo", "fifo", "deferred_sorted")


def pages_of(*numbers: int) -> Pages:
    return np.array(numbers, np.int32)


def taken(allocator: PageAllocator, num_pages: int, owner: str = "r") -> list[int]:
    pages = allocator.alloc(num_pages, owner)
    assert pages is not None
    assert pages.dtype == np.int32
    numbers: list[int] = pages.tolist()
    return numbers


def test_lifo_hands_out_the_pages_freed_last_first() -> None:
    allocator = PageAllocator(6, "lifo")
    assert taken(allocator, 4) == [0, 1, 2, 3]
    allocator.free(pages_of(2, 0))
    allocator.free(pages_of(3, 1))
    assert taken(allocator, 5) == [3, 1, 2, 0, 4]


def test_fifo_reuses_a_page_only_after_all_others() -> None:
    allocator = PageAllocator(6, "fifo")
    taken(allocator, 4)
    allocator.free(pages_of(2, 0))
    allocator.free(pages_of(3, 1))
    assert taken(allocator, 6) == [4, 5, 2, 0, 3, 1]


def test_deferred_sorted_reuses_freed_pages_only_when_the_ready_ones_run_short() -> None:
    allocator = PageAllocator(6, "deferred_sorted")
    taken(allocator, 3)
    allocator.free(pages_of(2, 0))
    assert allocator.free_pages == 5
    assert taken(allocator, 2) == [3, 4], "ready pages are enough: the freed ones stay aside"
    assert taken(allocator, 2) == [0, 2], "short: page 5 and the freed ones are merged and sorted"
    assert taken(allocator, 1) == [5]


def test_alloc_gives_all_pages_or_none() -> None:
    allocator = PageAllocator(4, "lifo")
    taken(allocator, 3)
    assert allocator.alloc(2, "late") is None
    assert allocator.free_pages == 1
    assert taken(allocator, 1) == [3]


def test_alloc_of_no_pages_tells_nobody() -> None:
    changes: list[PageChange] = []
    allocator = PageAllocator(4, "lifo", lambda what, pages, owner: changes.append(what))
    assert taken(allocator, 0) == []
    allocator.free(pages_of())
    assert changes == []


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    ("pages", "reason"),
    [
        (pages_of(0, 1), "double free"),  # 1 was freed before
        (pages_of(0, 3), "free already"),  # 3 was never handed out
        (pages_of(0, 0), "there twice"),
        (pages_of(0, 9), "none of this pool"),
        (pages_of(0, -1), "none of this pool"),
    ],
)
def test_wrong_free_raises_and_changes_nothing(policy: FreeListPolicy, pages: Pages, reason: str) -> None:
    allocator = PageAllocator(5, policy)
    taken(allocator, 3)
    allocator.free(pages_of(1))
    with pytest.raises(AssertionError, match=reason):
        allocator.free(pages)
    assert allocator.free_pages == 3
    assert allocator.owner(0) == "r"
    allocator.check()


def test_a_guard_that_lets_a_double_free_pass_makes_two_owners_of_one_page() -> None:
    let_pass: list[str] = []
    allocator = PageAllocator(3, "lifo", on_double_free=let_pass.append)
    taken(allocator, 2, "a")
    allocator.free(pages_of(0, 1))
    allocator.free(pages_of(1))
    assert let_pass == ["free: page 1 is free already: double free"]
    with pytest.raises(AssertionError, match="free twice"):
        allocator.check()
    assert [taken(allocator, 1, owner) for owner in ("b", "c", "d")] == [[1], [0], [1]]


def test_a_page_that_is_freed_twice_in_one_call_is_nobodys_the_second_time() -> None:
    events: list[tuple[list[int], str]] = []
    allocator = PageAllocator(
        3, "fifo", lambda what, pages, owner: events.append((pages.tolist(), owner)), on_double_free=lambda why: None
    )
    taken(allocator, 2, "a")
    allocator.free(pages_of(1, 0, 1))
    assert events[1:] == [([1, 0], "a"), ([1], NOBODY)]
    assert taken(allocator, 4) == [2, 1, 0, 1]


def test_events_name_the_pages_and_their_owner_after_the_change() -> None:
    events: list[tuple[PageChange, list[int], str, int]] = []
    allocator = PageAllocator(
        6,
        "fifo",
        lambda what, pages, owner: events.append((what, pages.tolist(), owner, allocator.free_pages)),
    )
    taken(allocator, 2, "a")
    taken(allocator, 2, "b")
    allocator.publish(pages_of(1), "tree")
    allocator.free(pages_of(0, 2, 1, 3))
    assert events == [
        ("alloc", [0, 1], "a", 4),
        ("alloc", [2, 3], "b", 2),
        ("publish", [1], "tree", 2),
        ("free", [0], "a", 6),
        ("free", [2, 3], "b", 6),
        ("free", [1], "tree", 6),
    ]


def test_publish_of_a_free_page_raises() -> None:
    with pytest.raises(AssertionError, match="publish: page 2"):
        PageAllocator(4, "lifo").publish(pages_of(2), "tree")


def test_check_finds_a_page_that_is_free_and_owned() -> None:
    allocator = PageAllocator(4, "lifo")
    taken(allocator, 1)
    allocator._ready = np.append(allocator._ready, np.int32(0))
    with pytest.raises(AssertionError, match="4 free and 1 owned"):
        allocator.check()


def test_check_finds_a_page_that_is_free_twice() -> None:
    allocator = PageAllocator(4, "lifo")
    allocator._ready = np.append(allocator._ready, np.int32(3))
    with pytest.raises(AssertionError, match="free twice"):
        allocator.check()


class AllocatorAgainstModel(RuleBasedStateMachine):
    """The model is a dict of owners; order is checked by the tests above."""

    @initialize(policy=st.sampled_from(POLICIES), num_pages=st.integers(2, 12))
    def start(self, policy: FreeListPolicy, num_pages: int) -> None:
        self.owners: dict[int, str] = {}
        self.heard: dict[int, str] = {}
        self.pages = range(num_pages)
        self.allocator = PageAllocator(num_pages, policy, self.hear)

    def hear(self, what: PageChange, pages: Pages, owner: str) -> None:
        for page in pages.tolist():
            if what == "free":
                assert self.heard.pop(page) == owner
            else:
                assert (page in self.heard) == (what == "publish")
                self.heard[page] = owner

    @rule(num_pages=st.integers(0, 13), owner=st.sampled_from("abc"))
    def alloc(self, num_pages: int, owner: str) -> None:
        pages = self.allocator.alloc(num_pages, owner)
        if num_pages > len(self.pages) - len(self.owners):
            assert pages is None
            return
        assert pages is not None
        numbers = pages.tolist()
        assert len(numbers) == len(set(numbers)) == num_pages
        for page in numbers:
            assert page in self.pages
            assert page not in self.owners
            self.owners[page] = owner

    @precondition(lambda self: self.owners)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        pages = data.draw(st.lists(st.sampled_from(sorted(self.owners)), unique=True))
        self.allocator.free(pages_of(*pages))
        for page in pages:
            del self.owners[page]

    @precondition(lambda self: len(self.owners) < len(self.pages))
    @rule(data=st.data())
    def free_what_is_free(self, data: st.DataObject) -> None:
        free = [page for page in self.pages if page not in self.owners]
        pages = [*self.owners, data.draw(st.sampled_from(free))]
        with pytest.raises(AssertionError, match="double free"):
            self.allocator.free(pages_of(*pages))

    @precondition(lambda self: self.owners)
    @rule(data=st.data())
    def publish(self, data: st.DataObject) -> None:
        page = data.draw(st.sampled_from(sorted(self.owners)))
        self.allocator.publish(pages_of(page), "tree")
        self.owners[page] = "tree"

    @invariant()
    def agrees(self) -> None:
        self.allocator.check()
        numbers = range(self.allocator.num_pages)
        assert [self.allocator.owner(page) for page in numbers] == [self.owners.get(page, NOBODY) for page in numbers]
        assert self.allocator.used_pages == len(self.owners)
        assert self.heard == self.owners


TestAllocatorAgainstModel = AllocatorAgainstModel.TestCase
TestAllocatorAgainstModel.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
