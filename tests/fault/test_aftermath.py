"""What became of a change: followed by hand-made events over real pools, detectors left out of it."""

import numpy as np
import pytest

from repro.base.probe import Access, BadRead, PageEvent
from repro.fault.aftermath import Aftermath, Corruptions, Spot
from repro.serve.kv.pool import KVPool
from tests.builders import make_op

PAGES, TOKENS, LAYER = 6, 4, 0
FAULT = "memory.cached.zero"
BEFORE_US, AT_US, AFTER_US = 50.0, 100.0, 150.0


def pool_of(tier: str) -> KVPool:
    """Return a pool whose rows all hold stamps of their own."""
    pool = KVPool(tier, 1, PAGES, TOKENS, None)
    pool.stamps["latent"][0] = np.arange(1, PAGES * TOKENS + 1).reshape(PAGES, TOKENS) + 100 * (tier == "host")
    return pool


class Story:
    """Two tiers, and an aftermath that is told events about them. A set of pages is named by its only page, from
    100 on by several."""

    def __init__(self) -> None:
        self.pools = {tier: pool_of(tier) for tier in ("device", "host")}
        self.sets = {page: [page] for page in range(PAGES)} | {100: [0, 1, 2]}
        self.aftermath = Aftermath(lambda number: self.sets[number])
        self.aftermath.memory(self.pools)

    def zero(self, tier: str, page: int) -> None:
        """Zero a page, as a fault does."""
        pool = self.pools[tier]
        pool.stamps["latent"][0, page] = 0
        held = pool.read("latent", LAYER, np.array([page], np.int32))
        self.aftermath.follow(FAULT, [Spot(pool, "latent", LAYER, page, np.ones(TOKENS, bool), held, AT_US)])

    def read(self, pages: int, *, start_us: float = AFTER_US, bad: int | None = None) -> None:
        """Let a step read device pages; `bad` is the set that the canary reports."""
        if bad is not None:
            self.aftermath.feed(BadRead(1, "compute", 0, "latent", LAYER, "r1", 4, 0, bad, 0, start_us))
        self.op("forward.attend", Access(False, "device", "latent", LAYER, pages, "r1"), start_us=start_us)

    def copy(self, source: str, pages: int, target: str, to: int) -> None:
        """Copy pages from a tier to another, in order."""
        rows = self.pools[source].read("latent", LAYER, np.array(self.sets[pages], np.int32))
        self.pools[target].write("latent", LAYER, np.array(self.sets[to], np.int32), rows)
        ends = (
            Access(write, tier, "latent", LAYER, n, "")
            for write, tier, n in ((False, source, pages), (True, target, to))
        )
        self.op("loadback.copy_layer", *ends)

    def op(self, name: str, *accesses: Access, start_us: float = AFTER_US) -> None:
        self.aftermath.feed(make_op(name=name, layer=LAYER, start_us=start_us, accesses=accesses))

    @property
    def counts(self) -> Corruptions:
        return self.aftermath.counts[FAULT]


@pytest.fixture
def story() -> Story:
    return Story()


def test_a_read_that_the_canary_reports_is_detected(story: Story) -> None:
    story.zero("device", 1)
    story.read(100, bad=1)
    assert story.counts == Corruptions(changed=1, read=1, detected=1)


@pytest.mark.parametrize("bad", [None, 2])
def test_a_read_that_is_not_reported_for_that_page_is_missed(story: Story, bad: int | None) -> None:
    story.zero("device", 1)
    story.read(100, bad=bad)
    assert story.counts == Corruptions(changed=1, read=1)


def test_a_step_that_had_read_before_read_nothing_wrong(story: Story) -> None:
    story.zero("device", 1)
    story.read(100, start_us=BEFORE_US)
    story.read(2)
    assert story.counts == Corruptions(changed=1)


def test_a_page_that_was_given_back_or_overwritten_is_never_read(story: Story) -> None:
    for page in (0, 1):
        story.zero("device", page)
    story.aftermath.feed(PageEvent("free", "device", 0, "", 1, AFTER_US))
    story.pools["device"].stamps["latent"][0, 1] = 7
    story.op("forward.store", Access(True, "device", "latent", LAYER, 1, "r1"))
    story.read(100)
    assert story.counts == Corruptions(changed=2)


def test_a_copy_takes_it_along(story: Story) -> None:
    story.zero("host", 3)
    story.copy("host", 3, "device", 5)
    story.read(5, bad=5)
    assert story.counts == Corruptions(changed=1, read=1, detected=1)


def test_twins_that_are_copied_together_are_both_followed(story: Story) -> None:
    story.zero("host", 0)
    story.zero("host", 1)
    story.copy("host", 100, "device", 100)
    story.read(0, bad=0)
    story.read(1)
    assert story.counts == Corruptions(changed=2, read=2, detected=1)


def test_a_copy_beside_a_right_page_that_holds_the_same_loses_it(story: Story) -> None:
    story.zero("host", 0)
    story.pools["host"].stamps["latent"][0, 2] = 0
    story.copy("host", 100, "device", 100)
    story.read(100)
    assert story.counts == Corruptions(changed=1, lost=1)
