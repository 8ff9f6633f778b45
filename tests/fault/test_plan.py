"""Fault plans: what is possible passes, what could never be carried out as written is refused."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repro.base.errors import ScenarioError
from repro.base.toml import to_toml
from repro.fault.plan import (
    CORRUPTING,
    DELAY_US_MAX,
    NEED_US,
    PLACES,
    POINTS,
    STALL_UNTIL_US_MAX,
    TIMING,
    WITHOUT_US,
    Do,
    Fault,
    When,
    check,
)
from repro.scenario.schema import parse

US = {"delay": 5.0, "stall": 5.0, "slow": 5.0, "burst": 5.0}


def fault(at: str = "loadback.copy_layer", *, when: When | None = None, do: Do | None = None) -> Fault:
    return Fault(at, do or Do("delay", us=800), when or When())


def some(kind: str) -> Do:
    """Return an action of this kind with the numbers it needs."""
    return Do(kind, us=US.get(kind, 0.0), tokens=64 if kind == "evict" else 0)


@pytest.mark.parametrize(("at", "kind"), [(at, kind) for at, kinds in POINTS.items() for kind in kinds])
def test_every_kind_is_possible_at_its_points(at: str, kind: str) -> None:
    check((fault(at, do=some(kind)),), "x.toml")


@st.composite
def possible(draw: st.DrawFn) -> Fault:
    """Draw a fault as the plan language allows it: a kind of its point, and only numbers that mean something."""
    at = draw(st.sampled_from(sorted(POINTS)))
    kind = draw(st.sampled_from(POINTS[at]))
    most = STALL_UNTIL_US_MAX if kind == "stall" else DELAY_US_MAX
    least = 1e-3 if kind in NEED_US else 0.0
    us = 0.0 if kind in WITHOUT_US else draw(st.floats(least, most))
    when = When(
        probability=draw(st.floats(1e-6, 1.0)),
        skip=draw(st.integers(0, 1000)),
        times=draw(st.none() | st.integers(1, 1000)),
    )
    return Fault(at, Do(kind, us=us, tokens=draw(st.integers(64, 4096)) if kind == "evict" else 0), when)


@given(st.lists(possible(), max_size=4))
def test_what_is_possible_is_read_from_toml_as_it_was_meant(faults: list[Fault]) -> None:
    text = to_toml({"format": 1, "title": "t", "defects": [], "fault": msgspec.to_builtins(faults)})
    assert parse(text, "x", "x.toml").faults == tuple(faults)


@given(st.sampled_from(sorted(POINTS)), st.sampled_from(sorted({kind for kinds in POINTS.values() for kind in kinds})))
def test_a_kind_is_possible_at_its_points_and_nowhere_else(at: str, kind: str) -> None:
    if kind in POINTS[at]:
        check((fault(at, do=some(kind)),), "x.toml")
    else:
        with pytest.raises(ScenarioError, match=f"is not possible at {at}; use one of: {', '.join(POINTS[at])}"):
            check((fault(at, do=some(kind)),), "x.toml")


def test_only_the_kinds_of_wrong_bytes_corrupt_and_only_in_memory() -> None:
    corrupting = {(at, kind) for at, kinds in POINTS.items() for kind in kinds if fault(at, do=some(kind)).corrupting}
    assert corrupting == {(place, kind) for place in PLACES for kind in CORRUPTING}


def test_an_unknown_point_says_where_the_known_ones_are_listed() -> None:
    with pytest.raises(ScenarioError, match='nearest: "memory.cached"; `repro faults` shows them'):
        check((fault("memory.cachd"),), "x.toml")


def test_a_fault_is_named_by_its_point_and_kind() -> None:
    assert fault().name == "loadback.copy_layer.delay"


def test_only_faults_of_time_have_to_change_an_order() -> None:
    assert {kind for kinds in POINTS.values() for kind in kinds if fault(do=some(kind)).timing} == set(TIMING)


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (fault("loadback.copy_layr"), 'at = "loadback.copy_layr" is no probe point; nearest: "loadback.copy_layer"'),
        (fault("client.abort"), 'do.kind = "delay" is not possible at client.abort; use one of: abort'),
        (fault(do=Do("dely", us=1)), 'do.kind = "dely" is not possible at .* use one of: delay, stall, reorder'),
        (fault(when=When(probability=0)), "when.probability = 0; must be above 0 and at most 1"),
        (fault(when=When(probability=1.5)), "when.probability = 1.5; must be above 0 and at most 1"),
        (fault(when=When(probability=float("nan"))), "when.probability = nan"),
        (fault(when=When(skip=-1)), "when.skip = -1; must be at least 0"),
        (fault(when=When(times=0)), "when.times = 0; must be at least 1"),
        (fault(do=Do("delay")), "do.us = 0.0; a fault of kind delay takes more than 0"),
        (fault(do=Do("delay", us=-5)), "do.us = -5; a fault of kind delay takes more than 0"),
        (fault(do=Do("delay", us=float("nan"))), "do.us = nan; a fault of kind delay takes more than 0"),
        (fault(do=Do("delay", us=61e6)), "do.us = 61000000.0; must be at least 0 and at most 60000000"),
        (fault(do=Do("stall", us=float("inf"))), "do.us = inf; must be at least 0 and at most 3600000000"),
        (fault("client.abort", do=Do("abort", us=-1)), "do.us = -1; must be at least 0"),
        (fault("client.slow_reader", do=Do("slow")), "do.us = 0.0; a fault of kind slow takes more than 0"),
        (fault(do=Do("reorder", us=5)), "do.us = 5 means nothing to a fault of kind reorder; leave it out"),
        (fault("memory.evict", do=Do("evict")), "do.tokens = 0; say how many cached tokens to evict"),
        (fault("memory.evict", do=Do("evict", us=5, tokens=64)), "do.us = 5 means nothing to a fault of kind evict"),
        (fault(do=Do("delay", us=5, tokens=64)), "do.tokens = 64 means nothing to a fault of kind delay"),
    ],
)
def test_a_fault_that_could_never_be_carried_out_is_refused_with_its_place(wrong: Fault, complaint: str) -> None:
    with pytest.raises(ScenarioError, match=rf"^x.toml \[\[fault\]\] 2: {complaint}"):
        check((fault(), wrong), "x.toml")


def test_a_plan_without_faults_is_fine() -> None:
    check((), "x.toml")
