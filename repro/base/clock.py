"""An asyncio event loop whose clock is virtual: ordinary async code, run in simulated time.

The loop asks a `World` to move whenever no callback is ready. The world runs one device event or
moves the clock; it never passes the next timer. No wall clock is read, so a thousand hours of
sleeping cost nothing, and the order of everything is a function of the program alone.
"""

import asyncio
import contextvars
import heapq
import selectors
from collections.abc import Callable, Collection, Coroutine, Mapping
from typing import Any, Protocol, TypeVar, cast

from repro.base.errors import HarnessError

Result = TypeVar("Result")

TICKS_PER_S = 1_000_000_000  # timers are ordered in whole nanoseconds, then in order of creation
TICKS_PER_US = 1_000
RESOLUTION_S = 0.5 / TICKS_PER_S  # half a tick: far above float rounding for a week of virtual time
WORLD_STEPS_MAX = 100  # between two rounds of asyncio, which cost as much and let Ctrl-C and other threads in
STALLED_STEPS_MAX = 1_000  # world steps in a row that move no clock and wake no task
PENDING_SHOWN_MAX = 20


class DeadlockError(HarnessError):
    """Nothing is ready, no timer is set, and the world has nothing left to do."""


class World(Protocol):
    """What the loop simulates between callbacks."""

    def advance(self, deadline_us: float | None) -> float:
        """Run at most one event, or move the clock, never past `deadline_us`; return the new now (us).

        With a deadline and no event before it, the clock goes to the deadline. Without a deadline
        and without events it stays, and the loop concludes that nothing will ever happen.
        """


class _Timer(asyncio.TimerHandle):
    """A timer with a total order: by tick, then first set first. A heap alone isn't stable."""

    __slots__ = ("order",)
    _scheduled: bool

    def __init__(
        self,
        ticks: int,
        number: int,
        callback: Callable[..., object],
        args: tuple[object, ...],
        loop: asyncio.AbstractEventLoop,
        context: contextvars.Context | None,
    ) -> None:
        super().__init__(ticks / TICKS_PER_S, callback, args, loop, context)
        self.order = (ticks, number)

    def __lt__(self, other: object) -> bool:
        return isinstance(other, _Timer) and self.order < other.order


class _Internals(Protocol):
    """The attributes of asyncio's own loop that this one relies on (Python 3.11 to 3.14)."""

    _scheduled: list[_Timer]
    _ready: Collection[asyncio.Handle]
    _clock_resolution: float


class _VirtualSelector(selectors.BaseSelector):
    """The seam: asyncio calls `select` when it would sleep, and the world moves instead.

    A real selector holds the registered files, and serves only wake-ups from other threads.
    """

    def __init__(self) -> None:
        self.files = selectors.DefaultSelector()
        self.pause: Callable[[], list[tuple[selectors.SelectorKey, int]]] = list

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Move the world unless callbacks are ready; never blocks in a purely virtual loop."""
        return [] if timeout is not None and timeout <= 0 else self.pause()

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """Register with the real selector."""
        return self.files.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        """Unregister from the real selector."""
        return self.files.unregister(fileobj)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        """Return the real selector's map."""
        return self.files.get_map()

    def close(self) -> None:
        """Close the real selector."""
        self.files.close()


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in virtual time: `loop.time()` is the world's clock in seconds.

    `external=True` is for a loop in a separate thread that others feed through `call_soon_threadsafe`: instead of a
    `DeadlockError`, an idle loop sleeps for real until woken. Sockets, pipes and executors need an external loop;
    inside a purely virtual one nothing outside the process can be waited for, or two runs would differ.
    """

    def __init__(self, world: World, *, external: bool = False, now_us: float = 0.0) -> None:
        self._world = world
        self._external = external
        self._now_us = now_us
        self._timers_set = 0
        self._stalled_steps = 0
        self._virtual_selector = _VirtualSelector()
        super().__init__(self._virtual_selector)
        self._virtual_selector.pause = self._advance
        self._internals = cast(_Internals, self)
        self._internals._clock_resolution = RESOLUTION_S

    @property
    def now_us(self) -> float:
        """The virtual time in microseconds at the world's last move."""
        return self._now_us

    def time(self) -> float:
        """Return the virtual time in seconds."""
        return self._now_us / 1e6

    def call_at(
        self, when: float, callback: Callable[..., object], *args: object, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """Set a timer; timers of one nanosecond fire in the order in which they were set."""
        if self.is_closed():
            raise RuntimeError("Event loop is closed")
        self._timers_set += 1
        timer = _Timer(round(when * TICKS_PER_S), self._timers_set, callback, args, self, context)
        heapq.heappush(self._internals._scheduled, timer)
        timer._scheduled = True
        return timer

    def wait_external(self, timeout_s: float | None) -> list[tuple[selectors.SelectorKey, int]]:
        """Sleep for real until another thread calls `call_soon_threadsafe`, or for `timeout_s`."""
        return self._virtual_selector.files.select(timeout_s)

    def _advance(self) -> list[tuple[selectors.SelectorKey, int]]:
        """Let the world move until a callback is ready or a timer due; called by asyncio when none is."""
        deadline_us = self._deadline_us()
        for _ in range(WORLD_STEPS_MAX):
            if deadline_us is not None and deadline_us - self._now_us <= RESOLUTION_S * 1e6:
                return []  # due, up to rounding: asyncio takes it
            self._move(deadline_us)
            if self._internals._ready:
                return []
            if self._stalled_steps >= STALLED_STEPS_MAX:
                return self._idle(deadline_us)
        return []

    def _move(self, deadline_us: float | None) -> None:
        now_us = self._world.advance(deadline_us)
        if now_us < self._now_us or (deadline_us is not None and now_us > deadline_us + RESOLUTION_S * 1e6):
            raise HarnessError(
                f"the simulated world moved its clock from {self._now_us} us to {now_us} us, "
                f"expected a time up to the deadline {deadline_us}; this is a bug of the world's advance()"
            )
        moved = now_us > self._now_us or bool(self._internals._ready)
        self._now_us = now_us
        self._stalled_steps = 0 if moved else self._stalled_steps + 1

    def _deadline_us(self) -> float | None:
        """Return the time of the next live timer; asyncio has just dropped cancelled ones."""
        timers = self._internals._scheduled
        return timers[0].order[0] / TICKS_PER_US if timers else None

    def _idle(self, deadline_us: float | None) -> list[tuple[selectors.SelectorKey, int]]:
        self._stalled_steps = 0
        if deadline_us is not None:
            raise HarnessError(
                f"the simulated world stands still at {self._now_us} us with a timer at {deadline_us} us: "
                "its advance() must run an event or move to the deadline"
            )
        if self._external:
            return self.wait_external(None)
        raise DeadlockError(_deadlock_text(self, self._now_us))


def run_virtual(main: Coroutine[Any, Any, Result], world: World, *, external: bool = False) -> Result:
    """Run `main` to its end in virtual time and return its result; tasks left over are cancelled."""
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(world, external=external)) as runner:
        return runner.run(main)


def _deadlock_text(loop: asyncio.AbstractEventLoop, now_us: float) -> str:
    pending = sorted(_waiting_at(task) for task in asyncio.all_tasks(loop))
    shown = "; ".join(pending[:PENDING_SHOWN_MAX]) or "none"
    more = len(pending) - PENDING_SHOWN_MAX
    return (
        f"deadlock in virtual time at {now_us} us: no callback is ready, no timer is set and the device "
        f"is idle, yet {len(pending)} task(s) wait: {shown}{f' and {more} more' if more > 0 else ''}. "
        "Each waits for something that nobody will do; look at the places named."
    )


def _waiting_at(task: asyncio.Task[Any]) -> str:
    """Return a task's name and the innermost line it waits at."""
    awaited: Any = task.get_coro()
    place = ""
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "ag_frame", None)
        if frame is not None:
            place = f" at {frame.f_code.co_filename}:{frame.f_lineno}"
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "ag_await", None)
    return f"{task.get_name()}{place}"
