"""Any host program, any picker: causality holds, tapes replay, the natural schedule is the earliest."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from repro.base.probe import Event, Op
from repro.schedule.pickers import RandomPicker, timed
from tests.litmus.platform import CudaPlatform, Platform, SimPlatform
from tests.litmus.programs import Program, edges_of, long_programs, name_of, programs, run_program
from tests.tapes import Recording, TapePicker

seeds = st.integers(0, 2**32)
tapes = st.lists(st.integers(0, 9), max_size=60)


def ops_by_name(events: list[Event]) -> dict[str, Op]:
    return {event.name: event for event in events if isinstance(event, Op)}


def assert_linear_extension(platform: Platform, program: Program) -> None:
    ops = ops_by_name(platform.events)
    ended = {name: place for place, name in enumerate(op.name for op in platform.ops)}
    for place, earlier in edges_of(program).items():
        for source in earlier:
            one, other = ops[name_of(source)], ops[name_of(place)]
            assert ended[one.name] < ended[other.name]
            assert one.end_us <= other.start_us


@settings(max_examples=100, deadline=None)
@given(programs, seeds)
def test_random_picks_never_violate_causality(program: Program, seed: int) -> None:
    platform = SimPlatform(RandomPicker(seed))
    run_program(platform, program)
    assert_linear_extension(platform, program)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@settings(max_examples=200, deadline=None)
@given(long_programs)  # of short ones, few have an edge that matters
def test_no_gpu_violates_causality(program: Program) -> None:
    platform = CudaPlatform(dilation=20.0)  # undilated, the host would be too slow for two operations to overlap
    run_program(platform, program)
    assert_linear_extension(platform, program)


@settings(max_examples=100, deadline=None)
@given(programs, tapes)
def test_no_tape_violates_causality(program: Program, tape: list[int]) -> None:
    platform = SimPlatform(TapePicker(tape))
    run_program(platform, program)
    assert_linear_extension(platform, program)


@settings(max_examples=100, deadline=None)
@given(programs, seeds)
def test_a_tape_of_a_random_run_replays_it_event_for_event(program: Program, seed: int) -> None:
    recording = Recording(RandomPicker(seed))
    first, again = SimPlatform(recording), SimPlatform(TapePicker(recording.tape))
    run_program(first, program)
    run_program(again, program)
    assert first.events == again.events


@settings(max_examples=100, deadline=None)
@given(programs, seeds)
def test_two_runs_with_one_seed_are_identical(program: Program, seed: int) -> None:
    first, again = SimPlatform(RandomPicker(seed)), SimPlatform(RandomPicker(seed))
    run_program(first, program)
    run_program(again, program)
    assert first.events == again.events


@settings(max_examples=100, deadline=None)
@given(programs)
def test_the_natural_schedule_starts_each_operation_as_early_as_it_may(program: Program) -> None:
    platform = SimPlatform(timed)
    run_program(platform, program)
    ops = ops_by_name(platform.events)
    for place, earlier in edges_of(program).items():
        op = ops[name_of(place)]
        ready_us = max([op.enqueued_us, *(ops[name_of(source)].end_us for source in earlier)])
        assert op.start_us == ready_us
        assert op.end_us == op.start_us + program[place].duration_us  # type: ignore[union-attr]


@settings(max_examples=100, deadline=None)
@given(programs, seeds)
def test_nothing_starts_before_the_host_has_enqueued_it(program: Program, seed: int) -> None:
    platform = SimPlatform(RandomPicker(seed))
    run_program(platform, program)
    assert all(op.enqueued_us <= op.start_us <= op.end_us for op in platform.ops)
