"""A captured graph replays what was enqueued; host code does not run again."""

import pytest

from repro.schedule.pickers import RandomPicker
from repro.serve.device.base import Device, Event, Stream
from tests.litmus.graphs import Function, capture
from tests.litmus.platform import PlatformFactory, copy, nothing, write

pytestmark = pytest.mark.simulated("graphs are captured by a stand-in so far")


def test_nothing_runs_during_a_capture(device_factory: PlatformFactory) -> None:
    platform = device_factory()
    cell = platform.memory(0)

    async def main() -> None:
        capture(platform.device, "graph", lambda device, origin: origin.enqueue("w", write(cell, 1), duration_us=1))

    platform.run(main)
    assert cell[0] == 0
    assert not platform.ops


def test_a_replay_repeats_the_operations_and_no_host_code(device_factory: PlatformFactory) -> None:
    platform = device_factory()
    stream = platform.device.stream("compute")
    source, target = platform.memory(1), platform.memory(0)
    calls = []

    def decode(device: Device, origin: Stream) -> None:
        calls.append("host")
        origin.enqueue("copy", copy(source, target), duration_us=10)

    async def main() -> None:
        graph = capture(platform.device, "decode", decode)
        for value in (5, 6, 7):
            source[0] = value  # memory is read when the operation runs
            graph.replay(stream)
            await stream.synchronize("replayed")
            assert target[0] == value

    platform.run(main)
    assert calls == ["host"]
    assert [op.name for op in platform.ops] == ["copy"] * 3


def test_values_are_those_of_the_capture(device_factory: PlatformFactory) -> None:
    platform = device_factory()
    stream = platform.device.stream("compute")
    cell, value = platform.memory(0), 5

    def decode(device: Device, origin: Stream) -> None:
        origin.enqueue("write", write(cell, value), duration_us=10)

    async def main() -> None:
        nonlocal value
        graph = capture(platform.device, "decode", decode)
        value = 6
        graph.replay(stream)

    platform.run(main)
    assert cell[0] == 5


def read_after_load(device_factory: PlatformFactory, *, guard_outside: bool) -> int:
    """Capture a guarded read while nothing loads, then replay it during a load; return what it saw.

    The full-hit hazard: a guard inside a captured function runs once, at the capture.
    """
    platform = device_factory()
    load, compute = platform.device.stream("load"), platform.device.stream("compute")
    page, seen = platform.memory(1), platform.memory(0)
    loading: list[Event] = []

    def decode(device: Device, origin: Stream) -> None:
        for event in loading:  # the guard: none at the capture
            origin.wait(event, "the page is loaded back")
        origin.enqueue("read", copy(page, seen), duration_us=1)

    async def main() -> None:
        graph = capture(platform.device, "decode", decode)
        load.enqueue("load", write(page, 2), duration_us=500)
        loading.append(platform.device.event("loaded"))
        loading[0].record(load)
        if guard_outside:
            compute.wait(loading[0], "the page is loaded back")
        graph.replay(compute)

    platform.run(main)
    return int(seen[0])


def test_a_guard_inside_the_capture_does_not_guard_the_replay(device_factory: PlatformFactory) -> None:
    assert read_after_load(device_factory, guard_outside=False) == 1


def test_a_guard_before_the_replay_does(device_factory: PlatformFactory) -> None:
    assert read_after_load(device_factory, guard_outside=True) == 2


def fork_and_join(device: Device, origin: Stream) -> None:
    side = device.stream("side")
    forked, joined = device.event("forked"), device.event("joined")
    origin.enqueue("before", nothing, duration_us=10)
    forked.record(origin)
    side.wait(forked, "fork")
    side.enqueue("aside", nothing, duration_us=50)
    origin.enqueue("meanwhile", nothing, duration_us=10)
    joined.record(side)
    origin.wait(joined, "join")
    origin.enqueue("after", nothing, duration_us=10)


@pytest.mark.parametrize("seed", range(10))
def test_the_waits_between_captured_branches_hold_in_every_replay(device_factory: PlatformFactory, seed: int) -> None:
    platform = device_factory(RandomPicker(seed))
    stream = platform.device.stream("compute")

    async def main() -> None:
        graph = capture(platform.device, "graph", fork_and_join)
        stream.enqueue("earlier", nothing, duration_us=100)
        graph.replay(stream)
        graph.replay(stream)
        stream.enqueue("later", nothing, duration_us=1)

    platform.run(main)
    names = [op.name for op in platform.ops]
    assert (names[0], names[-1]) == ("earlier", "later")
    for lap in (names[1:5], names[5:9]):
        assert (lap[0], lap[-1]) == ("before", "after")
        assert sorted(lap[1:3]) == ["aside", "meanwhile"]


def test_branches_of_a_graph_run_beside_its_origin(device_factory: PlatformFactory) -> None:
    platform = device_factory()
    stream = platform.device.stream("compute")

    async def main() -> None:
        capture(platform.device, "graph", fork_and_join).replay(stream)

    platform.run(main)
    by_name = {op.name: op for op in platform.ops}
    assert by_name["aside"].start_us < by_name["meanwhile"].end_us < by_name["aside"].end_us
    assert by_name["aside"].stream == "graph.side"


def test_a_replay_names_its_step_and_requests(device_factory: PlatformFactory) -> None:
    platform = device_factory()
    stream = platform.device.stream("compute")

    async def main() -> None:
        graph = capture(platform.device, "graph", fork_and_join)
        graph.replay(stream, step=4, requests=("a",))

    platform.run(main)
    assert {(op.step, op.requests) for op in platform.ops} == {(4, ("a",))}


def test_a_replay_costs_the_host_one_launch_whatever_is_in_it(device_factory: PlatformFactory) -> None:
    platform = device_factory()
    stream = platform.device.stream("compute")

    def many(device: Device, origin: Stream) -> None:
        for _ in range(500):
            origin.enqueue("kernel", nothing, duration_us=1)

    async def main() -> None:
        capture(platform.device, "many", many).replay(stream)

    platform.run(main)
    assert len({op.enqueued_us for op in platform.ops}) == 1
    assert platform.ops[0].enqueued_us < 100


def _unjoined(device: Device, origin: Stream) -> None:
    side, forked = device.stream("side"), device.event("forked")
    forked.record(origin)
    side.wait(forked, "fork")
    side.enqueue("lost", nothing, duration_us=1)


def _never_forked(device: Device, origin: Stream) -> None:
    device.stream("side").enqueue("stray", nothing, duration_us=1)


def _query(device: Device, origin: Stream) -> None:
    device.event("asked").query()


def _nested(device: Device, origin: Stream) -> None:
    capture(device, "inner", fork_and_join)


@pytest.mark.parametrize(
    ("function", "complaint"),
    [
        (_unjoined, "graph.side has 1 operations and the origin does not wait for the last"),
        (_never_forked, "stray: stream graph.side has to wait for an event of the capture first"),
        (_query, "query of graph.asked: the host can't meet the device during a capture"),
        (_nested, "capture of inner within the capture of graph"),
    ],
)
def test_what_a_graph_cannot_hold_is_refused(
    device_factory: PlatformFactory, function: Function, complaint: str
) -> None:
    with pytest.raises(AssertionError, match=complaint):
        capture(device_factory().device, "graph", function)


def test_a_wait_for_an_event_from_outside_is_refused(device_factory: PlatformFactory) -> None:
    device = device_factory().device
    outside = device.event("outside")
    with pytest.raises(AssertionError, match="recorded outside"):
        capture(device, "graph", lambda _, origin: origin.wait(outside, "load-back"))


def test_an_event_of_a_capture_means_nothing_outside(device_factory: PlatformFactory) -> None:
    device = device_factory().device
    inside: list[Event] = []
    capture(device, "graph", lambda capturing, _: inside.append(capturing.event("inside")))
    stream = device.stream("compute")
    with pytest.raises(AssertionError, match="can't wait for an event of a capture"):
        stream.wait(inside[0], "nothing")
    with pytest.raises(AssertionError, match="is of a capture, compute is not"):
        inside[0].record(stream)
