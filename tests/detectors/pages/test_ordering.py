"""Races: found and named where nothing orders two accesses, silent where anything does."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.base import DetectorVerdict
from detectors.evidence import Operation
from detectors.pages.ordering import EXAMPLES_MAX, OPERATIONS_KEPT, OrderingDetector
from detectors.pages.sets import Sample
from repro.base.probe import PAGE_SETS_VALID, OpRef, PageSet
from tests.detectors.events import World, judged, only


def answer(world: World) -> DetectorVerdict:
    return judged(OrderingDetector(), world.events)


def test_a_race_names_both_operations_the_page_the_layer_and_the_missing_edge() -> None:
    world = World()
    world.page_event("alloc", 12, owner="load:s1")
    world.op("load", "loadback.copy_layer", world.access("write", 11, 12, layer=2))
    read = world.access("read", 12, 13, layer=2, request="s1-t1")
    world.op("compute", "forward.index", read)
    finding = only(answer(world))
    assert finding.claim == (
        "loadback.copy_layer on stream load writes and forward.index on stream compute reads the index rows "
        "of page 12, layer 2; nothing orders them"
    )
    assert finding.signature == (
        "ordering: loadback.copy_layer write x forward.index read of device index, no edge between compute and load"
    )
    assert finding.request == "s1-t1"
    evidence = finding.evidence
    assert (evidence.page, evidence.pages, evidence.layer, evidence.tier) == (12, 1, 2, "device")
    assert evidence.missing_edge == (
        "compute waits for no event that load records behind loadback.copy_layer (layer 2) before forward.index"
    )
    assert (evidence.first.name, evidence.first.write) == ("loadback.copy_layer", True)
    assert (evidence.second.name, evidence.second.write) == ("forward.index", False)
    assert evidence.first.site == "serve/load.py:1"
    assert evidence.requests == ("s1-t1",)
    assert "alloc (load:s1)" in evidence.history[0]


def test_the_missing_edge_goes_from_what_was_enqueued_first_even_if_it_ran_last() -> None:
    world = World()
    world.op("compute", "forward.index", world.access("read", 12), host=2)
    world.op("load", "loadback.copy_layer", world.access("write", 12), host=1)
    evidence = only(answer(world)).evidence
    assert evidence.missing_edge == (
        "compute waits for no event that load records behind loadback.copy_layer (layer 0) before forward.index"
    )
    assert evidence.inverted


def test_an_example_of_a_race_that_went_wrong_is_kept_however_late_it_comes() -> None:
    world = World()
    for page in range(EXAMPLES_MAX + 1):
        world.op("load", "copy", world.access("write", page), host=1)
        world.op("compute", "read", world.access("read", page), host=1)
    world.op("compute", "read", world.access("read", 99), host=1)
    world.op("load", "copy", world.access("write", 99), host=0)
    findings = answer(world).findings
    assert len(findings) == EXAMPLES_MAX
    assert [finding.evidence.inverted for finding in findings] == [False] * (EXAMPLES_MAX - 1) + [True]


@pytest.mark.parametrize("first", ["read", "write"])
@pytest.mark.parametrize("second", ["read", "write"])
def test_all_pairs_but_two_reads_conflict(first: str, second: str) -> None:
    world = World()
    world.op("a", "first", world.access(first, 5))
    world.op("b", "second", world.access(second, 5))
    assert answer(world).answer == ("clean" if (first, second) == ("read", "read") else "anomaly")


def test_an_event_wait_orders() -> None:
    world = World()
    copied = world.write("load", 5)
    world.read("compute", 5, after=(copied,))
    assert answer(world).answer == "clean"


def test_a_wait_orders_all_that_follows_on_its_stream() -> None:
    world = World()
    copied = world.write("load", 5)
    world.op("compute", "other", after=(copied,))
    world.read("compute", 5)
    assert answer(world).answer == "clean"


def test_a_wait_for_a_later_operation_of_the_stream_orders_the_earlier_ones() -> None:
    world = World()
    world.write("load", 5)
    last = world.write("load", 6)
    world.read("compute", 5, after=(last,))
    assert answer(world).answer == "clean"


def test_a_wait_for_an_earlier_operation_does_not_order_the_later_ones() -> None:
    world = World()
    first = world.write("load", 5)
    world.write("load", 6)
    world.read("compute", 6, after=(first,))
    assert only(answer(world)).evidence.page == 6


def test_waits_are_transitive_over_a_third_stream() -> None:
    world = World()
    copied = world.write("load", 5)
    between = world.op("middle", "pass on", after=(copied,))
    world.read("compute", 5, after=(between,))
    assert answer(world).answer == "clean"


def test_what_the_host_saw_finished_orders_what_it_enqueues_next() -> None:
    world = World()
    copied = world.write("load", 5)
    world.sync(copied)
    world.read("compute", 5)
    assert answer(world).answer == "clean"


def test_what_the_host_had_enqueued_before_it_saw_that_stays_unordered() -> None:
    world = World()
    enqueued = world.host
    copied = world.write("load", 5)
    world.sync(copied)
    world.read("compute", 5, host=enqueued)
    assert answer(world).answer == "anomaly"


def test_the_enqueue_edge_passes_on_what_the_host_knew() -> None:
    """The load stream learns through the host that compute has finished reading."""
    world = World()
    reading = world.read("compute", 5)
    world.sync(reading)
    world.op("load", "start")
    world.write("load", 5)
    assert answer(world).answer == "clean"


def test_one_stream_needs_no_edge() -> None:
    world = World()
    world.write("compute", 5)
    world.read("compute", 5)
    world.write("compute", 5)
    assert answer(world).answer == "clean"


def test_freeing_and_allocating_again_is_no_edge() -> None:
    world = World()
    world.read("compute", 5, request="old")
    world.page_event("free", 5)
    world.page_event("alloc", 5, owner="new")
    world.write("load", 5)
    finding = only(answer(world))
    assert finding.evidence.requests == ("old",)
    assert finding.claim.startswith("compute.read on stream compute reads and load.write on stream load writes")


def test_time_is_no_edge() -> None:
    world = World()
    world.op("load", "copy", world.access("write", 5), start_us=0.0, end_us=1.0)
    world.op("compute", "read", world.access("read", 5), start_us=1e9, end_us=1e9 + 1)
    assert answer(world).answer == "anomaly"


@pytest.mark.parametrize(
    "other",
    [{"layer": 3}, {"component": "latent"}, {"tier": "host"}],
    ids=["layer", "component", "tier"],
)
def test_other_layers_components_and_tiers_do_not_conflict(other: dict[str, Any]) -> None:
    world = World()
    world.write("load", 5)
    world.read("compute", 5, **other)
    assert answer(world).answer == "clean"


def test_pages_that_the_other_stream_never_read_do_not_conflict() -> None:
    world = World()
    world.read("compute", 5)
    world.write("load", 4)
    assert answer(world).answer == "clean"


def test_other_pages_do_not_conflict() -> None:
    world = World()
    world.write("load", 1, 2, 3)
    world.read("compute", 4, 5)
    assert answer(world).answer == "clean"


def test_the_last_reader_of_each_stream_is_remembered() -> None:
    world = World()
    world.read("compute", 5, request="a")
    ordered = world.read("other", 5, request="b")
    world.write("load", 5, after=(ordered,))
    finding = only(answer(world))
    assert finding.evidence.requests == ("a",)


def test_only_requests_that_touched_raced_pages_are_named() -> None:
    world = World()
    world.write("load", 5)
    accesses = [world.access("read", page, request=name) for page, name in ((4, "near"), (5, "hit"), (6, "far"))]
    world.op("compute", "read", *accesses)
    detector = OrderingDetector()
    finding = only(judged(detector, world.events))
    assert finding.evidence.requests == ("hit",)
    assert list(detector.raced) == ["hit"]


def test_a_write_that_races_with_several_reads_names_the_requests_of_all() -> None:
    world = World()
    world.read("compute", 5, request="a")
    world.read("compute", 6, request="b")
    world.read("compute", 7, request="c")
    world.write("load", 5, 6)
    detector = OrderingDetector()
    finding = only(judged(detector, world.events))
    assert sorted(detector.raced) == ["a", "b"]
    assert finding.evidence.pages == 2
    assert finding.evidence.page == 5


def test_the_page_named_is_one_that_the_pair_named_really_shares() -> None:
    world = World()
    world.op("load", "second", world.access("write", 9))
    world.op("load", "first", world.access("write", 3))
    accesses = [world.access("read", 9, request="a"), world.access("read", 3, request="b")]
    world.op("compute", "read", *accesses)
    evidence = only(answer(world)).evidence
    assert (evidence.page, evidence.first.name) == (3, "first")


def test_equal_races_are_counted_and_only_some_keep_their_evidence() -> None:
    world = World()
    for page in range(40):
        world.write("load", page)
        world.read("compute", page)
    verdict = answer(world)
    assert len(verdict.findings) == EXAMPLES_MAX
    assert sum(finding.count for finding in verdict.findings) == 40
    assert len({finding.signature for finding in verdict.findings}) == 1


def test_a_race_with_an_operation_long_gone_still_names_its_stream() -> None:
    world = World()
    world.write("load", 5)
    for _ in range(OPERATIONS_KEPT + 10):
        world.read("compute", 9)
    world.read("compute", 5)
    evidence = only(answer(world)).evidence
    assert evidence.first == Operation("load", 0, write=True)


def test_nothing_recorded_is_not_applicable() -> None:
    world = World()
    world.op("compute", "opaque")
    verdict = answer(world)
    assert (verdict.answer, verdict.checked) == ("not_applicable", 0)
    assert "no page access was recorded" in verdict.why


def test_what_was_looked_at_is_counted() -> None:
    world = World()
    world.write("load", 1, 2, 3)
    world.read("load", 1)
    verdict = answer(world)
    assert (verdict.answer, verdict.checked) == ("clean", 4)


Step = tuple[str, bool, set[int], int, str]
programs = st.lists(
    st.tuples(
        st.sampled_from(["compute", "load"]),
        st.booleans(),
        st.sets(st.integers(0, 3), min_size=1),
        st.integers(0, 1),
        st.sampled_from(["nothing", "waits", "told", "freed"]),
    ),
    max_size=30,
)


def played(program: list[Step], pages: frozenset[int] = frozenset(range(4))) -> World:
    """Return the events of a program that touches only these pages of what it says."""
    world, last = World(), dict[str, OpRef]()
    for stream, write, touched, layer, before in program:
        other, kept = last.get("load" if stream == "compute" else "compute"), sorted(touched & pages)
        if before == "told" and other is not None:
            world.sync(other)
        elif before == "freed" and kept:
            world.page_event("free", *kept)
        how = {"layer": layer, "request": f"r{min(touched)}", "after": (other,) if before == "waits" and other else ()}
        last[stream] = (world.write if write else world.read)(stream, *kept, **how)
    return world


@settings(max_examples=300, deadline=None)
@given(programs)
def test_operations_compared_at_once_are_judged_as_one_by_one(program: list[Step]) -> None:
    world, at_once, one_by_one = played(program), OrderingDetector(), OrderingDetector()
    verdict = judged(at_once, world.events)
    for event in world.events:
        one_by_one.feed(event)
        assert one_by_one.raced.items() <= at_once.raced.items()  # asking makes it compare what is pending
    assert one_by_one.verdict() == verdict
    assert one_by_one.raced == at_once.raced


@settings(max_examples=300, deadline=None)
@given(programs, st.integers(0, 9))
def test_a_sample_is_judged_as_if_no_other_page_were_touched(program: list[Step], first: int) -> None:
    """So what is found is true, and all that races on a page of the sample is found."""
    sampled, whole = OrderingDetector(Sample(2, first)), OrderingDetector()
    told = [fed(sampled, played(program)), fed(whole, played(program, frozenset({first % 2, first % 2 + 2})))]
    found = [[(each.signature, each.count, each.evidence.page) for each in verdict.findings] for verdict in told]
    assert found[0] == found[1]
    assert sampled.raced.keys() >= whole.raced.keys()
    assert told[0].checked == told[1].checked


def test_nothing_of_the_sample_touched_is_not_applicable() -> None:
    world = World()
    world.write("load", 5)
    verdict = fed(OrderingDetector(Sample(16, 4)), world)
    assert (verdict.answer, verdict.why) == (
        "not_applicable",
        "no access to a page of the sample, 1 in 16, was recorded",
    )


def test_slots_and_rows_are_no_pages_and_are_always_watched() -> None:
    world = World()
    world.write("transfer", 5, component="slot")
    world.read("compute", 5, component="slot")
    assert fed(OrderingDetector(Sample(16, 4)), world).answer == "anomaly"


def fed(detector: OrderingDetector, world: World) -> DetectorVerdict:
    for event in world.events:
        detector.feed(event)
    return detector.verdict()


def test_a_page_of_no_layer_is_refused() -> None:
    world = World()
    world.read("compute", 5, layer=-1)
    with pytest.raises(AssertionError, match="touches pages of no layer"):
        answer(world)


def test_page_sets_are_forgotten_when_nobody_may_refer_to_them() -> None:
    detector = OrderingDetector()
    for number in range(1, PAGE_SETS_VALID + 1000):
        detector.feed(PageSet(number, (number % 600, number % 600 + 1)))
    assert len(detector._all_pages) == PAGE_SETS_VALID
