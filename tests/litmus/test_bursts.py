"""Operations that are simulated in one go come to the same as those that the device stops between."""

import asyncio
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from repro.base.probe import Burst, HostSync, Op
from repro.schedule.pickers import RandomPicker, timed
from repro.serve.device.base import Body, Commit, Recorder
from repro.serve.device.streams import Choice
from tests.litmus.platform import SimPlatform, nothing
from tests.litmus.programs import Enqueue, Program, long_programs, programs, run_program

CELLS = 3


class Cells:
    """A few numbers that every operation of a program reads at its start and changes at its end."""

    def __init__(self) -> None:
        self.values = [0] * CELLS
        self.read: dict[int, list[int]] = {}

    def body(self, place: int) -> Body:
        def run(recorder: Recorder) -> Commit:
            self.read[place] = list(self.values)
            seen = sum(self.values)

            def commit() -> None:
                self.values[place % CELLS] = 31 * seen + place

            return commit

        return run


def operations(platform: SimPlatform) -> list[Op]:
    return sorted(platform.ops, key=lambda op: (op.stream, op.index))


@settings(max_examples=300, deadline=None)
@given(st.one_of(programs, long_programs))
def test_any_program_comes_to_the_same_with_bursts_and_without(program: Program) -> None:
    results = []
    for bursts in (True, False):
        platform, cells = SimPlatform(timed, bursts=bursts), Cells()
        run_program(platform, program, cells.body)
        syncs = [event for event in platform.events if isinstance(event, HostSync)]
        results.append((operations(platform), syncs, cells.read, cells.values, platform.sim.time_us))
    assert results[0] == results[1]


@settings(max_examples=100, deadline=None)
@given(st.one_of(programs, long_programs), st.integers(0, 2**32))
def test_every_operation_runs_once_whatever_is_picked(program: Program, seed: int) -> None:
    platform, cells = SimPlatform(RandomPicker(seed)), Cells()
    run_program(platform, program, cells.body)
    enqueued = {place for place, instruction in enumerate(program) if isinstance(instruction, Enqueue)}
    assert set(cells.read) == enqueued and len(platform.ops) == len(enqueued)


def enqueue_three(platform: SimPlatform) -> None:
    compute = platform.device.stream("compute")
    for number in range(3):
        compute.enqueue(f"op{number}", nothing, duration_us=100)


def test_a_stream_alone_runs_what_the_host_enqueues_as_one_burst() -> None:
    platform = SimPlatform()

    async def main() -> None:
        enqueue_three(platform)

    platform.run(main)
    (burst,) = [event for event in platform.recorded if isinstance(event, Burst)]
    assert [part.name for part in burst.parts] == ["op0", "op1", "op2"]
    assert [(op.start_us, op.end_us) for op in burst.operations] == [(2.0, 102.0), (102.0, 202.0), (202.0, 302.0)]


def test_an_operation_of_another_stream_cuts_a_burst_where_it_comes() -> None:
    platform = SimPlatform()
    copies = platform.device.stream("copies")

    async def main() -> None:
        enqueue_three(platform)
        await asyncio.sleep(150e-6)
        copies.enqueue("copy", nothing, duration_us=10)

    platform.run(main)
    assert not [event for event in platform.recorded if isinstance(event, Burst)]
    assert [op.name for op in platform.ops] == ["op0", "copy", "op1", "op2"]


def test_a_burst_that_should_have_ended_when_the_host_acts_first_lets_the_next_operation_start() -> None:
    def ends_late(choices: Sequence[Choice]) -> int:
        return next((place for place, each in enumerate(choices) if each.kind != "end"), 0)

    platform = SimPlatform(ends_late)
    compute, copies = platform.device.stream("compute"), platform.device.stream("copies")
    event = platform.device.event("behind the burst")

    async def main() -> None:
        for name in ("a", "b"):
            compute.enqueue(name, nothing, duration_us=100)
        event.record(compute)
        compute.enqueue("c", nothing, duration_us=100)
        waiting = asyncio.create_task(event.synchronize("b has ended"))
        await asyncio.sleep(1e-3)
        copies.enqueue("copy", nothing, duration_us=10)
        await waiting

    platform.run(main)
    assert sorted(op.name for op in platform.ops) == ["a", "b", "c", "copy"]


def test_an_event_recorded_between_two_operations_parts_them() -> None:
    platform = SimPlatform()
    compute, event = platform.device.stream("compute"), platform.device.event("between")

    async def main() -> None:
        for name in ("a", "b"):
            compute.enqueue(name, nothing, duration_us=100)
        event.record(compute)
        for name in ("c", "d"):
            compute.enqueue(name, nothing, duration_us=100)
        await event.synchronize("b has ended")
        assert platform.device.now_us == 202.0

    platform.run(main)
    bursts = [event for event in platform.recorded if isinstance(event, Burst)]
    assert [[part.name for part in each.parts] for each in bursts] == [["a", "b"], ["c", "d"]]
