"""Clocks against plain reachability, and what is forgotten."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.pages.happens_before import ACTORS_MAX, Clock, HappensBefore
from repro.base.probe import Op
from repro.schedule.pickers import RandomPicker
from tests.detectors.events import World
from tests.litmus.platform import SimPlatform
from tests.litmus.programs import Program, closure_of, edges_of, name_of, programs, run_program


@settings(max_examples=300, deadline=None)
@given(programs, st.integers(0, 2**32))
def test_clocks_cover_exactly_what_must_have_happened_before(program: Program, seed: int) -> None:
    """Of any host program and schedule; so a race is never missed and never made up."""
    platform = SimPlatform(RandomPicker(seed))
    run_program(platform, program)
    order = HappensBefore()
    clocks, refs = {}, {}
    for event in platform.events:
        clock = order.feed(event)
        if isinstance(event, Op):
            assert clock is not None
            clocks[event.name], refs[event.name] = clock.copy(), (event.stream, event.index)
    for place, earlier in closure_of(edges_of(program)).items():
        clock = clocks[name_of(place)]
        for other in refs:
            stream, index = refs[other]
            covered = clock[order.actor(stream)] >= index
            assert covered == (other == name_of(place) or int(other[2:]) in earlier), (other, place)


def test_a_wait_for_an_operation_that_was_not_seen_is_refused() -> None:
    world = World()
    world.op("compute", "early", after=(("load", 3),))
    with pytest.raises(AssertionError, match="operation 3 of stream load, which was never seen to end"):
        feed(HappensBefore(), world)


def test_a_gap_in_a_stream_is_refused() -> None:
    world = World()
    for _ in range(3):
        world.op("compute", "op")
    del world.events[1]
    with pytest.raises(AssertionError, match="compute: operation 2 came after 0; some are missing"):
        feed(HappensBefore(), world)


def test_a_record_that_begins_in_the_middle_is_read() -> None:
    world = World()
    for _ in range(5):
        last = world.op("load", "op")
    world.op("compute", "op", after=(last,))
    del world.events[:3]
    feed(HappensBefore(), world)


def test_old_operations_are_forgotten() -> None:
    world = World()
    for _ in range(500):
        world.sync(world.op("compute", "op"))
    order = HappensBefore(clocks_kept=50)
    feed(order, world)
    assert len(order._streams["compute"].history.clocks) <= 100
    assert len(order._hosts[""].clocks) <= 100


def test_operations_that_learn_nothing_new_share_a_clock_and_a_wait_for_an_early_one_covers_no_later_one() -> None:
    world = World()
    early, *_ = [world.op("load", "op") for _ in range(500)]
    world.op("compute", "op", after=(early,))
    order = HappensBefore(clocks_kept=50)
    clock = feed(order, world)
    assert len(order._streams["load"].history.clocks) == 1
    assert clock is not None and clock[order.actor("load")] == early[1]


def test_a_wait_for_a_forgotten_operation_that_is_known_anyway_is_no_problem() -> None:
    world = World()
    old = world.op("load", "op")
    world.op("compute", "op", after=(old,))
    learn(world, "load", times=500)
    world.op("compute", "op", after=(old,))
    feed(HappensBefore(clocks_kept=50), world)


def test_a_wait_for_a_forgotten_operation_says_what_to_raise() -> None:
    world = World()
    old = world.op("load", "op")
    learn(world, "load", times=500)
    world.op("compute", "op", after=(old,))
    with pytest.raises(AssertionError, match=r"operation 0 of stream load, 500 operations back.*CLOCKS_KEPT"):
        feed(HappensBefore(clocks_kept=50), world)


def test_an_operation_that_slept_through_the_hosts_memory_says_what_to_raise() -> None:
    world = World()
    enqueued = world.host
    for _ in range(500):
        world.sync(world.op("load", "op"))
    world.op("compute", "op", host=enqueued)
    with pytest.raises(AssertionError, match=r"more than 50 host synchronisations.*CLOCKS_KEPT"):
        feed(HappensBefore(clocks_kept=50), world)


def test_streams_are_bounded() -> None:
    order = HappensBefore()
    for number in range(ACTORS_MAX - 1):
        order.actor(f"s{number}")
    with pytest.raises(AssertionError, match="stream s63 is one more than the 63"):
        order.actor("s63")


def learn(world: World, stream: str, *, times: int) -> None:
    """Emit operations of a stream, each of which waits for something new."""
    for _ in range(times):
        world.op(stream, "op", after=(world.op("other", "op"),))


def feed(order: HappensBefore, world: World) -> Clock | None:
    """Return the clock of the last event."""
    clock = None
    for event in world.events:
        clock = order.feed(event)
    return clock
