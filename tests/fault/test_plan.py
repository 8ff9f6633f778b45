"""Fault plans: what is possible passes, what could never be carried out as written is refused."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import fields

from repro.base.errors import ScenarioError
from repro.base.toml import to_toml
from repro.fault.kinds import KINDS, Abort, AnyKind, Delay, Evict, Slow, Stall
from repro.fault.plan import Fault, When, check
from repro.fault.points import PLACES, TIMING, names_of
from repro.scenario.schema import parse
from tests.fault.builders import CORRUPTING, NUMBERS, POINTS
from tests.scenario.test_scenario import FAULT, tiny_text


def fault(at: str = "loadback.copy_layer", *, when: When | None = None, do: AnyKind | None = None) -> Fault:
    return Fault(at, do or Delay(800), when or When())


def some(kind: str) -> AnyKind:
    """Return an action of this kind with the number it needs."""
    return KINDS[kind](*([NUMBERS[kind]] if kind in NUMBERS else []))


@pytest.mark.parametrize(("at", "kind"), [(at, kind) for at, kinds in POINTS.items() for kind in kinds])
def test_every_kind_is_possible_at_its_points(at: str, kind: str) -> None:
    check((fault(at, do=some(kind)),), "x.toml")


@st.composite
def possible(draw: st.DrawFn) -> Fault:
    """Draw a fault as the plan language allows it: a kind of its point, and only numbers that mean something."""
    at = draw(st.sampled_from(sorted(POINTS)))
    kind = draw(st.sampled_from(POINTS[at]))
    takes = {field.encode_name for field in fields(KINDS[kind])}
    numbers: list[float] = []
    if "us" in takes:
        numbers.append(draw(st.floats(1e-3 if KINDS[kind].needs_time else 0.0, KINDS[kind].time_us_max)))
    elif "tokens" in takes:
        numbers.append(draw(st.integers(64, 4096)))
    when = When(
        probability=draw(st.floats(1e-6, 1.0)),
        skip=draw(st.integers(0, 1000)),
        times=draw(st.none() | st.integers(1, 1000)),
    )
    return Fault(at, KINDS[kind](*numbers), when)


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
    corrupting = {(at, kind) for at, kinds in POINTS.items() for kind in kinds if some(kind).corrupting}
    assert corrupting == {(place, kind) for place in PLACES for kind in CORRUPTING}


def test_an_unknown_point_says_where_the_known_ones_are_listed() -> None:
    with pytest.raises(ScenarioError, match='nearest: "memory.cached"; `repro faults` shows them'):
        check((fault("memory.cachd"),), "x.toml")


def test_a_fault_is_named_by_its_point_and_kind() -> None:
    assert fault().name == "loadback.copy_layer.delay"


def test_only_faults_of_time_have_to_change_an_order() -> None:
    assert {kind for kinds in POINTS.values() for kind in kinds if some(kind).timing} == set(names_of(TIMING))


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (fault("loadback.copy_layr"), 'at = "loadback.copy_layr" is no probe point; nearest: "loadback.copy_layer"'),
        (fault("client.abort"), 'do.kind = "delay" is not possible at client.abort; use one of: abort'),
        (fault(when=When(probability=0)), "when.probability = 0; must be above 0 and at most 1"),
        (fault(when=When(probability=1.5)), "when.probability = 1.5; must be above 0 and at most 1"),
        (fault(when=When(probability=float("nan"))), "when.probability = nan"),
        (fault(when=When(skip=-1)), "when.skip = -1; must be at least 0"),
        (fault(when=When(times=0)), "when.times = 0; must be at least 1"),
        (fault(do=Delay()), "do.us = 0.0; a fault of kind delay takes more than 0"),
        (fault(do=Delay(-5)), "do.us = -5; a fault of kind delay takes more than 0"),
        (fault(do=Delay(float("nan"))), "do.us = nan; a fault of kind delay takes more than 0"),
        (fault(do=Delay(61e6)), "do.us = 61000000.0; must be at least 0 and at most 60000000"),
        (fault(do=Stall(float("inf"))), "do.us = inf; must be at least 0 and at most 3600000000"),
        (fault("client.abort", do=Abort(-1)), "do.us = -1; must be at least 0"),
        (fault("client.slow_reader", do=Slow()), "do.us = 0.0; a fault of kind slow takes more than 0"),
        (fault("memory.evict", do=Evict()), "do.tokens = 0; say how many cached tokens to evict"),
    ],
)
def test_a_fault_that_could_never_be_carried_out_is_refused_with_its_place(wrong: Fault, complaint: str) -> None:
    with pytest.raises(ScenarioError, match=rf"^x.toml \[\[fault\]\] 2: {complaint}"):
        check((fault(), wrong), "x.toml")


def test_a_plan_without_faults_is_fine() -> None:
    check((), "x.toml")


@pytest.mark.parametrize(
    ("do", "complaint"),
    [
        ('kind = "reorder", us = 5', "do.us = 5 means nothing to kind reorder; leave it out"),
        ('kind = "evict", us = 5, tokens = 64', "do.us = 5 means nothing to kind evict; leave it out"),
        ('kind = "delay", us = 5, tokens = 64', "do.tokens = 64 means nothing to kind delay; leave it out"),
        ('kind = "dely", us = 1', r'do.kind = "dely"; use one of: delay, stall, .*nearest: "delay"'),
    ],
)
def test_a_file_that_gives_a_kind_what_it_does_not_take_is_refused(do: str, complaint: str) -> None:
    with pytest.raises(ScenarioError, match=rf"^x.toml \[\[fault\]\] 1: {complaint}"):
        parse(tiny_text(end=FAULT.format(f"do = {{ {do} }}")), "x", "x.toml")
