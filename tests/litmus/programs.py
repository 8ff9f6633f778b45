"""Random host programs over streams and events, and what CUDA's rules say about them.

`before` is computed from the program text alone, by plain reachability: no clock, no device.
"""

from collections.abc import Callable
from dataclasses import dataclass

from hypothesis import strategies as st

from repro.serve.device.base import Body
from tests.litmus.platform import Platform, nothing

STREAMS = 3
EVENTS = 3


@dataclass(frozen=True)
class Enqueue:
    stream: int
    duration_us: int


@dataclass(frozen=True)
class Record:
    event: int
    stream: int


@dataclass(frozen=True)
class Wait:
    stream: int
    event: int


@dataclass(frozen=True)
class Synchronize:
    event: int


Instruction = Enqueue | Record | Wait | Synchronize
Program = list[Instruction]

_stream = st.integers(0, STREAMS - 1)
_event = st.integers(0, EVENTS - 1)
_instruction = st.one_of(
    st.builds(Enqueue, _stream, st.integers(0, 40)),
    st.builds(Enqueue, _stream, st.integers(0, 40)),  # twice as often
    st.builds(Record, _event, _stream),
    st.builds(Wait, _stream, _event),
    st.builds(Synchronize, _event),
)
programs: st.SearchStrategy[Program] = st.lists(_instruction, max_size=30)
long_programs: st.SearchStrategy[Program] = st.lists(_instruction, min_size=25, max_size=40)


def name_of(place: int) -> str:
    """Return how the operation that the program's instruction `place` enqueues is called."""
    return f"op{place}"


def run_program(platform: Platform, program: Program, body: Callable[[int], Body] = lambda place: nothing) -> list[str]:
    """Run a program and return its operations in the order they ended; `body` makes that of an instruction's place."""
    device = platform.device
    streams = [device.stream(f"s{number}") for number in range(STREAMS)]
    events = [device.event(f"e{number}") for number in range(EVENTS)]

    async def main() -> None:
        for place, instruction in enumerate(program):
            match instruction:
                case Enqueue(stream, duration_us):
                    streams[stream].enqueue(name_of(place), body(place), duration_us=duration_us)
                case Record(event, stream):
                    events[event].record(streams[stream])
                case Wait(stream, event):
                    streams[stream].wait(events[event], f"instruction {place}")
                case Synchronize(event):
                    await events[event].synchronize(f"instruction {place}")

    platform.run(main)
    return [op.name for op in platform.ops]


def edges_of(program: Program) -> dict[int, set[int]]:
    """Return, for each enqueued operation, the operations that must have ended before it starts."""
    tail: list[set[int]] = [set() for _ in range(STREAMS)]  # what the next operation of a stream is behind
    recorded: list[set[int]] = [set() for _ in range(EVENTS)]
    host: set[int] = set()
    before: dict[int, set[int]] = {}
    for place, instruction in enumerate(program):
        match instruction:
            case Enqueue(stream, _):
                before[place] = tail[stream] | host
                tail[stream] = {place}
            case Record(event, stream):
                recorded[event] = set(tail[stream])
            case Wait(stream, event):
                tail[stream] = tail[stream] | recorded[event]
            case Synchronize(event):
                host = host | recorded[event]
    return before


def closure_of(before: dict[int, set[int]]) -> dict[int, set[int]]:
    """Return all predecessors of each operation, not only the direct ones."""
    every: dict[int, set[int]] = {}
    for place in sorted(before):
        every[place] = set(before[place])
        for earlier in before[place]:
            every[place] |= every[earlier]
    return every
