"""Owners: use after free, stale generations, and the step that may ride along."""

from detectors.base import DetectorVerdict
from detectors.pages.ownership import OwnershipDetector
from tests.detectors.events import World, judged, only


def answer(world: World) -> DetectorVerdict:
    return judged(OwnershipDetector(), world.events)


def owned(*pages: int) -> World:
    world = World()
    world.page_event("alloc", *pages, owner="a")
    return world


def test_the_owner_may_read_and_write() -> None:
    world = owned(5)
    world.write("compute", 5, request="a")
    world.read("compute", 5, request="a")
    verdict = answer(world)
    assert (verdict.answer, verdict.checked) == ("clean", 2)


def test_an_operation_enqueued_after_the_free_is_found() -> None:
    world = owned(5)
    world.page_event("free", 5)
    world.write("compute", 5, request="a")
    finding = only(answer(world))
    assert finding.claim == "compute.write on stream compute, layer 0, writes device page 5 after it was freed"
    assert finding.request == "a"
    assert [line.partition(": ")[2] for line in finding.evidence.history] == ["alloc (a)", "free (a)"]


def test_an_operation_enqueued_before_the_free_may_run_after_it() -> None:
    world = owned(5)
    enqueued = world.host
    world.page_event("free", 5)
    world.write("compute", 5, request="a", host=enqueued)
    assert answer(world).answer == "clean"


def test_a_stale_operation_before_the_new_owners_first_access_is_silent() -> None:
    world = owned(5)
    enqueued = world.host
    world.page_event("free", 5)
    world.page_event("alloc", 5, owner="b")
    world.write("compute", 5, request="a", host=enqueued)
    world.write("load", 5)
    assert answer(world).answer == "clean"


def test_a_stale_operation_after_the_new_owners_first_access_is_found() -> None:
    world = owned(5)
    enqueued = world.host
    world.page_event("free", 5)
    world.page_event("alloc", 5, owner="b")
    world.write("load", 5)
    world.write("compute", 5, request="a", host=enqueued)
    finding = only(answer(world))
    assert finding.claim.endswith("writes device page 5 of a newer owner")
    assert finding.signature == "ownership: compute.write writes a device page of a newer owner"


def test_enqueued_between_the_free_and_the_next_alloc_is_a_use_after_free_whoever_came_first() -> None:
    world = owned(5)
    world.page_event("free", 5)
    enqueued = world.host
    world.page_event("alloc", 5, owner="b")
    world.read("compute", 5, request="a", host=enqueued)
    assert only(answer(world)).claim.endswith("reads device page 5 after it was freed")


def test_the_new_owner_is_no_culprit() -> None:
    world = owned(5)
    world.page_event("free", 5)
    world.page_event("alloc", 5, owner="b")
    world.write("load", 5)
    world.read("compute", 5, request="b")
    assert answer(world).answer == "clean"


def test_publishing_to_the_tree_is_no_new_generation() -> None:
    world = owned(5)
    enqueued = world.host
    world.page_event("publish", 5, owner="tree")
    world.write("load", 5)
    world.read("compute", 5, request="a", host=enqueued)
    assert answer(world).answer == "clean"


def test_a_page_that_is_handed_out_while_somebody_owns_it_is_found() -> None:
    world = owned(5, 6)
    world.page_event("free", 6)
    world.page_event("alloc", 6, owner="b")
    world.read("compute", 5, request="a")
    assert answer(world).answer == "clean"
    world.page_event("alloc", 5, owner="b")
    finding = only(answer(world))
    assert finding.claim == "device page 5 is handed out while somebody owns it, for b"
    assert finding.evidence.pages == 1


def test_a_page_that_is_freed_twice_is_found() -> None:
    world = owned(5)
    world.page_event("free", 5)
    world.page_event("free", 5, owner="")
    finding = only(answer(world))
    assert finding.claim == "device page 5 is freed twice"
    assert finding.signature == "ownership: a device page is freed twice"


def test_the_free_of_a_page_whose_owner_was_never_told_convicts_nobody() -> None:
    world = World()
    world.page_event("free", 5)
    world.read("compute", 6, request="a")
    assert answer(world).answer == "clean"


def test_each_tier_has_its_own_pages() -> None:
    world = owned(5)
    world.page_event("alloc", 5, tier="host", owner="node")
    world.page_event("free", 5, tier="host")
    world.read("compute", 5, request="a")
    assert answer(world).answer == "clean"
    world.read("write", 5, tier="host")
    assert only(answer(world)).evidence.tier == "host"


def test_only_the_requests_on_wrong_pages_are_named() -> None:
    world = owned(5, 6)
    world.page_event("free", 6)
    good, bad = (world.access("read", page, request=name) for page, name in ((5, "good"), (6, "bad")))
    world.op("compute", "forward.index", good, bad)
    finding = only(answer(world))
    assert (finding.request, finding.evidence.page) == ("bad", 6)


def test_equal_findings_are_counted() -> None:
    world = owned(5)
    world.page_event("free", 5)
    for _ in range(7):
        world.read("compute", 5, request="a")
    assert only(answer(world)).count == 7


def test_pages_whose_owners_are_not_told_convict_nobody() -> None:
    world = World()
    world.read("compute", 5)
    assert answer(world).answer == "clean"


def test_nothing_recorded_is_not_applicable() -> None:
    world = owned(5)
    world.op("compute", "opaque")
    assert answer(world).answer == "not_applicable"
