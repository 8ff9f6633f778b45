"""The window around a finding, and its drawing."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from reports.run.evidence import HISTORY_STEPS_MAX, Window, windows
from reports.run.lanes import BARS_MAX, GUTTER, MARGIN, WIDTH, draw
from repro.base.probe import Access, AnyEvent, Edge, PageEvent, PageSet
from tests.builders import (
    canary_finding,
    make_op,
    make_run,
    race_events,
    race_evidence,
    race_finding,
    race_requests,
    text_finding,
)


def window_of(events: list[AnyEvent], **changes: object) -> Window:
    found = windows(lambda: events, [race_finding(**changes)])[0]
    assert found is not None
    return found


def test_the_window_holds_both_operations_and_what_ran_around_them() -> None:
    window = window_of(race_events())
    assert window.start_us < 500 and window.end_us > 1400
    assert [side.name for side in window.sides] == ["loadback.copy_layer", "index.score"]
    refs = {(op.stream, op.index) for op in window.operations}
    assert {("load", 5), ("compute", 7), ("compute", 6)} <= refs and ("compute", 0) not in refs


def test_the_history_of_the_page_tells_owner_generation_and_only_the_racing_component_and_layer() -> None:
    history = window_of(race_events()).history
    assert [(step.what, step.generation, step.racing) for step in history] == [
        ("alloc", 1, False), ("read", 1, False), ("read", 1, True), ("write", 1, True),
    ]  # fmt: skip
    assert history[0].who == "by load:s1-t1" and history[1].count == 2


def test_a_page_in_other_sets_and_other_tiers_is_told_apart() -> None:
    events: list[AnyEvent] = [
        PageSet(1, (0, 5, 12, 13)),
        PageSet(2, (13, 20)),
        PageEvent("alloc", "device", 1, "a", 1, 1.0),
        PageEvent("alloc", "device", 2, "b", 2, 2.0),
        PageEvent("alloc", "host", 1, "c", 3, 3.0),
        PageEvent("free", "device", 1, "a", 4, 4.0),
        PageEvent("alloc", "device", 1, "d", 5, 5.0),
    ]
    history = window_of(events).history
    assert [(step.what, step.who, step.generation) for step in history] == [
        ("alloc", "by a", 1), ("free", "by a", 1), ("alloc", "by d", 2),
    ]  # fmt: skip


def test_a_bad_read_finds_its_page_by_its_set_and_its_times_in_the_log(tmp_path: Path) -> None:
    finding = canary_finding(pages=1)
    window = windows(make_run(tmp_path).events, [finding, text_finding()])[0]
    assert window is not None and window.page == 10
    assert window.sides[0].span_us == (720.0, 790.0) and window.sides[0].site == "serve/forward.py:120"
    assert [step.what for step in window.history][:2] == ["alloc", "read"]


def test_a_finding_about_text_has_no_window() -> None:
    assert windows(race_events, [text_finding()]) == [None]


def test_a_long_history_keeps_its_end() -> None:
    events: list[AnyEvent] = [PageSet(1, (12, 13))]
    for number in range(300):
        read = Access(False, "device", "index", 2, 1, f"r{number}")
        events.append(make_op("compute", number, start_us=float(number), end_us=number + 0.5, accesses=(read,)))
    history = window_of(events).history
    assert len(history) == HISTORY_STEPS_MAX and history[-1].who.endswith("r299")


@given(
    st.lists(
        st.tuples(st.floats(0, 4000), st.floats(0, 3000), st.sampled_from(["load", "compute", "w"])),
        max_size=60,
    )
)
def test_everything_is_drawn_within_the_picture(spans: list[tuple[float, float, str]]) -> None:
    events: list[AnyEvent] = [
        make_op(stream, 100 + number, start_us=start, end_us=start + length, after=(Edge(("load", 5), "e"),))
        for number, (start, length, stream) in enumerate(spans)
    ]
    lanes = draw(window_of(events + race_events()), race_requests(), ["s1-t1"])
    for bar in (*lanes.bars, *lanes.requests):
        assert bar.x >= GUTTER and bar.x + bar.width <= WIDTH - MARGIN + 2
        assert bar.y >= 0 and bar.y + bar.height <= lanes.height
    for line in lanes.edges:
        assert min(line.x1, line.x2) >= GUTTER and max(line.x1, line.x2) <= WIDTH


def test_the_two_operations_stand_out_and_what_lacks_between_them_is_drawn() -> None:
    lanes = draw(window_of(race_events()), race_requests(), ["s1-t1"])
    roles = {bar.role: bar.title for bar in lanes.bars if bar.role}
    assert "load#5" in roles["first"] and "compute#7" in roles["second"]
    assert lanes.missing is not None and lanes.overlap is not None
    assert [mark.text for mark in lanes.callouts] == ["loadback.copy_layer writes", "index.score reads"]
    assert "load, compute" in lanes.alt


def test_a_crowded_window_draws_the_nearest_and_says_what_it_left_out() -> None:
    events: list[AnyEvent] = [
        make_op("busy", number, start_us=700.0 + number / 100, end_us=700.0 + number / 100 + 0.005)
        for number in range(3 * BARS_MAX)
    ]
    lanes = draw(window_of(race_events() + events), [], [])
    assert len(lanes.bars) == BARS_MAX and "are not drawn" in lanes.caption
    assert {bar.role for bar in lanes.bars} == {"", "first", "second"}


@pytest.mark.parametrize("span_us", [0.01, 3.0, 999.0, 5e6])
def test_ticks_are_few_and_round(span_us: float) -> None:
    first, second = (
        replace(side, start_us=500.0, end_us=500.0 + span_us)
        for side in (race_evidence().first, race_evidence().second)
    )
    evidence = race_evidence(first=first, second=second)
    lanes = draw(window_of([make_op()], evidence=evidence), [], [])
    assert all(tick.x + 3.2 * len(tick.text) <= WIDTH for tick in lanes.ticks)  # none is cut off at the edge
    assert 3 <= len(lanes.ticks) <= 8 and all(len(tick.text) <= 12 for tick in lanes.ticks)
