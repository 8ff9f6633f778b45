"""The virtual loop: order, time, deadlocks, wake-ups from threads."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable

import pytest

from repro.base.clock import DeadlockError, VirtualLoop, run_virtual
from repro.base.errors import HarnessError
from tests.idle import IdleWorld


class EventWorld:
    """Device events at fixed times, each a callable; the rest is an idle world."""

    def __init__(self, events: list[tuple[float, Callable[[], None]]]) -> None:
        self.events = sorted(events, key=lambda event: event[0])
        self.now_us = 0.0

    def advance(self, deadline_us: float | None) -> float:
        if self.events and (deadline_us is None or self.events[0][0] <= deadline_us):
            self.now_us, act = self.events.pop(0)
            act()
        elif deadline_us is not None:
            self.now_us = deadline_us
        return self.now_us


def test_ten_thousand_sleepers_wake_in_order_of_time_then_creation() -> None:
    woken: list[int] = []

    async def sleeper(number: int) -> None:
        await asyncio.sleep((number * 7919 % 100) * 0.1)
        woken.append(number)

    async def main() -> float:
        await asyncio.gather(*(sleeper(number) for number in range(10_000)))
        return asyncio.get_running_loop().time()

    started = time.perf_counter()
    assert run_virtual(main(), IdleWorld()) == pytest.approx(9.9)
    assert time.perf_counter() - started < 5.0
    assert woken == sorted(range(10_000), key=lambda number: (number * 7919 % 100, number))


def test_a_week_of_microsecond_sleeps_neither_spins_nor_drifts() -> None:
    async def main() -> float:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(7 * 24 * 3600)
        before = loop.time()
        for _ in range(1000):
            await asyncio.sleep(1e-6)
        return loop.time() - before

    passed = run_virtual(main(), IdleWorld())
    assert passed == pytest.approx(1e-3, rel=1e-3)


def test_times_equal_but_for_float_rounding_fire_in_order_of_creation() -> None:
    async def main() -> list[str]:
        order: list[str] = []
        loop = asyncio.get_running_loop()
        loop.call_at(0.1 + 0.2, order.append, "first")
        loop.call_at(0.3, order.append, "second")
        await asyncio.sleep(1)
        return order

    assert run_virtual(main(), IdleWorld()) == ["first", "second"]


def test_cancelled_timers_do_not_change_the_order_of_the_others() -> None:
    async def main() -> list[int]:
        order: list[int] = []
        loop = asyncio.get_running_loop()
        timers = [loop.call_at(1.0, order.append, number) for number in range(1000)]
        for timer in timers[::3] + timers[1::3]:
            timer.cancel()
        await asyncio.sleep(2)
        return order

    assert run_virtual(main(), IdleWorld()) == list(range(2, 1000, 3))


def test_timeout_fires_at_its_virtual_time() -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3600):
                await asyncio.Event().wait()
        return asyncio.get_running_loop().time()

    assert run_virtual(main(), IdleWorld()) == pytest.approx(3600)


def test_device_events_interleave_with_timers_at_their_times() -> None:
    seen: list[tuple[str, float]] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(0.002)
        seen.append(("timer", loop.time()))
        await asyncio.sleep(0.002)
        seen.append(("timer", loop.time()))

    def at(now_us: float) -> tuple[float, Callable[[], None]]:
        return now_us, lambda: seen.append(("device", now_us / 1e6))

    world = EventWorld([at(1000.0), at(3000.5)])
    run_virtual(main(), world)
    assert seen == [("device", 0.001), ("timer", 0.002), ("device", 0.0030005), ("timer", 0.004)]


def test_events_of_no_duration_are_no_deadlock() -> None:
    async def main() -> str:
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        world.events = [(0.0, lambda: None)] * 50 + [(0.0, lambda: answer.set_result("done"))]
        return await answer

    world = EventWorld([])
    assert run_virtual(main(), world) == "done"


def test_deadlock_names_the_waiting_tasks_and_their_lines() -> None:
    async def stuck() -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        await asyncio.create_task(stuck(), name="request-17")

    with pytest.raises(DeadlockError, match=r"2 task\(s\) wait.*request-17 at .*locks.py:\d+"):
        run_virtual(main(), IdleWorld())


class BrokenWorld:
    def __init__(self, answer: Callable[[float], float]) -> None:
        self.answer = answer

    def advance(self, deadline_us: float | None) -> float:
        return self.answer(deadline_us or 0.0)


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (lambda due: due + 5, "up to the deadline"),
        (lambda due: -1.0, "moved its clock"),
        (lambda due: 0.0, "stands still"),
    ],
)
def test_a_world_that_breaks_its_contract_is_named(answer: Callable[[float], float], complaint: str) -> None:
    with pytest.raises(HarnessError, match=complaint):
        run_virtual(asyncio.sleep(1), BrokenWorld(answer))


async def _echo(inbox: "asyncio.Queue[int | None]", replies: list[int]) -> None:
    while (number := await inbox.get()) is not None:
        await asyncio.sleep(10)  # virtual
        replies.append(number)


def test_another_thread_wakes_an_idle_external_loop() -> None:
    replies: list[int] = []
    started = threading.Event()
    box: list[tuple[VirtualLoop, asyncio.Queue[int | None]]] = []

    async def main() -> None:
        inbox: asyncio.Queue[int | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        box.append((loop, inbox))
        loop.call_soon(started.set)
        await _echo(inbox, replies)

    thread = threading.Thread(target=lambda: run_virtual(main(), IdleWorld(), external=True), daemon=True)
    thread.start()
    assert started.wait(5)
    loop, inbox = box[0]
    for item in (1, 2, 3, None):
        loop.call_soon_threadsafe(inbox.put_nowait, item)
    thread.join(5)
    assert not thread.is_alive()
    assert replies == [1, 2, 3]


def test_an_idle_external_loop_uses_no_processor() -> None:
    ready = threading.Event()
    box: list[VirtualLoop] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        box.append(loop)
        stop = asyncio.Event()
        box_stop.append(stop.set)
        loop.call_soon(ready.set)
        await stop.wait()

    box_stop: list[Callable[[], None]] = []
    thread = threading.Thread(target=lambda: run_virtual(main(), IdleWorld(), external=True), daemon=True)
    thread.start()
    assert ready.wait(5)
    before = time.process_time()
    threading.Event().wait(0.3)
    assert time.process_time() - before < 0.1
    box[0].call_soon_threadsafe(box_stop[0])
    thread.join(5)
    assert not thread.is_alive()


def test_results_and_errors_come_out_of_run_virtual() -> None:
    async def answer() -> int:
        return 42

    async def fail() -> None:
        raise ValueError("boom")

    assert run_virtual(answer(), IdleWorld()) == 42
    with pytest.raises(ValueError, match="boom"):
        run_virtual(fail(), IdleWorld())


def test_executors_work_on_an_external_loop() -> None:
    async def main() -> int:
        work: Awaitable[int] = asyncio.get_running_loop().run_in_executor(None, lambda: 7)
        return await work

    assert run_virtual(main(), IdleWorld(), external=True) == 7
