"""Drives sessions against a server: starts them when they are due, never more at once than planned.

Works unchanged in virtual and in real time; on a virtual loop the same input gives the same run. The
order of everything comes from lists and timers, never from a set. Sub-agents start when the turn that
calls them has been answered; they wait for a place like any session, before those not yet started.
"""

import asyncio
import contextlib
import gc
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence

from asyncio_throttle.throttler import Throttler

from repro.base.clock import VirtualLoop
from repro.base.errors import UsageError
from repro.load.answer import Answer
from repro.load.client import ChatClient
from repro.load.lag import clock_of
from repro.load.listener import CountsDetector, LoadListener, OnlineFinding, TextDetector
from repro.load.plan import LoadPlan, LoadResult
from repro.load.session import SessionRun, scaled_gap
from repro.load.shapes import Closed, arrival_times
from repro.load.tally import LoadTally
from repro.record.requests import SentRequest
from repro.trace.format import Session
from repro.trace.store import parent_turn

PIECES_PER_PROGRESS = 256  # between requests, listeners hear of progress every so many pieces
LOST_AFTER_FAILURES = 24  # requests in a row, beyond the concurrency, that got no answer at all


async def drive(
    sessions: Sequence[Session], client: ChatClient, plan: LoadPlan, *listeners: LoadListener
) -> LoadResult:
    """Replay the sessions and return the sums.

    A cancelled driver (Ctrl-C) cancels its requests, delivers them, and returns what there is. What a listener
    raises ends the load and comes out of here. Raises UsageError when the plan makes no sense.
    """
    plan.check()
    driver = _Driver(sessions, client, plan, listeners)
    client.lag.start()
    try:
        virtual = isinstance(asyncio.get_running_loop(), VirtualLoop)
        with contextlib.nullcontext() if virtual else _traces_out_of_gc():
            return await driver.run()
    finally:
        client.lag.stop()


class _Driver:
    """The running load; the `Crowd` of its sessions."""

    def __init__(
        self, sessions: Sequence[Session], client: ChatClient, plan: LoadPlan, listeners: Sequence[LoadListener]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._clock = clock_of(self._loop)
        self._client = client
        self._plan = plan
        self._listeners = listeners
        self._tally = LoadTally(client, self._clock, len(sessions))
        self._ceiling = _rate_ceiling(plan, self._loop)
        self._roots, self._children = _family(sessions)
        self._arrivals: dict[str, asyncio.TimerHandle] = {}  # session id -> timer of one that is not yet due
        self._called: deque[tuple[Session, float]] = deque()  # sub-agents that are due
        self._due: deque[tuple[Session, float]] = deque()
        self._active: dict[asyncio.Task[None], Session] = {}
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._stopping = False
        self._error: BaseException | None = None  # the first one that a session or a listener raised
        self._target_lost = ""
        self._answers = 0
        self._order_waits: list[tuple[int, asyncio.Future[None]]] = []

    async def run(self) -> LoadResult:
        """Start everything and wait for its end."""
        interrupted = False
        try:
            self._schedule_roots()
            await self._over
        except asyncio.CancelledError:
            interrupted = True
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
        finally:
            await self._stop()
        if self._error is not None:
            raise self._error
        return self._tally.closed(interrupted=interrupted, target_lost=self._target_lost)

    def sending(self) -> None:
        """A request goes out."""
        self._tally.requests_active += 1

    def grown(self, answer: Answer) -> None:
        """An answer has got a piece."""
        self._tally.pieces += 1
        if self._tally.pieces % PIECES_PER_PROGRESS == 0:
            self._report_progress()

    def text_detectors(self, request: str, prompt: str) -> list[TextDetector]:
        """Return the detectors of all listeners for an answer."""
        return [each for listener in self._listeners for each in listener.text_detectors(request, prompt)]

    def counts_detectors(self, request: str) -> list[CountsDetector]:
        """Return the detectors of all listeners for an answer's counts."""
        return [each for listener in self._listeners for each in listener.counts_detectors(request)]

    def found(self, request: str, finding: OnlineFinding) -> None:
        """An online detector is sure."""
        self._tally.result.findings += 1
        for listener in self._listeners:
            listener.on_finding(request, finding)

    def finished(self, request: SentRequest, answer: Answer) -> None:
        """A request is over: count it, deliver it, let waiting sessions pass."""
        self._tally.count(request, answer)
        for listener in self._listeners:
            listener.on_request(request)
        self._report_progress()
        self._answers += 1
        for target, waiting in self._order_waits:
            if self._answers >= target and not waiting.done():
                waiting.set_result(None)
        if self._tally.silent_failures >= LOST_AFTER_FAILURES + self._plan.concurrency and not self._over.done():
            self._target_lost = self._tally.last_error
            self._finish()

    def turn_over(self, session: Session, turn: int) -> None:
        """Start the sub-agents of this turn, each after its gap."""
        for child in self._children.pop((session.id, turn), []):
            due_s = self._clock() + scaled_gap(child.turns[0], self._plan)
            self._arrive_at(due_s, child, self._called)

    async def others_answered(self, answers: int, wait_max_s: float) -> None:
        """Return when so many answers of others are complete, or the time is up."""
        waiting: asyncio.Future[None] = self._loop.create_future()
        entry = (self._answers + answers, waiting)
        self._order_waits.append(entry)
        try:
            async with asyncio.timeout(wait_max_s):
                await waiting
        except TimeoutError:
            pass  # no other session has answered; this one goes on
        finally:
            self._order_waits.remove(entry)

    async def permission(self) -> None:
        """Return when the rate ceiling lets another request through."""
        if self._ceiling is not None:
            await self._ceiling()

    def _schedule_roots(self) -> None:
        recorded_s = [session.start_s * self._plan.time_scale for session in self._roots]
        times = arrival_times(self._plan.shape, self._plan.seed, recorded_s)
        start_s = self._clock()
        for session, time_s in zip(self._roots, times, strict=True):
            if time_s > 0:
                self._arrive_at(start_s + time_s, session, self._due)
            else:
                self._due.append((session, start_s))
        self._fill()

    def _arrive_at(self, due_s: float, session: Session, queue: "deque[tuple[Session, float]]") -> None:
        self._arrivals[session.id] = self._loop.call_at(due_s, self._arrive, session, due_s, queue)

    def _arrive(self, session: Session, due_s: float, queue: "deque[tuple[Session, float]]") -> None:
        del self._arrivals[session.id]
        queue.append((session, due_s))
        self._fill()

    def _fill(self) -> None:
        """Start due sessions while there are places; conclude when nothing is left."""
        while len(self._active) < self._plan.concurrency and (self._called or self._due) and not self._stopping:
            session, due_s = (self._called or self._due).popleft()
            if isinstance(self._plan.shape, Closed):
                due_s = self._clock()  # a closed load has no due times: no request is late
            run = SessionRun(session, self._client, self._plan, self)
            task = self._loop.create_task(run.run(due_s), name=f"session {session.id}")
            self._tally.result.sessions_not_started -= 1
            self._active[task] = session
            task.add_done_callback(self._session_over)
        if not (self._active or self._arrivals or self._called or self._due):
            self._finish()

    def _session_over(self, task: asyncio.Task[None]) -> None:
        del self._active[task]
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._error = self._error or error
            self._finish()
        elif not task.cancelled():
            self._tally.result.sessions_done += 1
        self._fill()

    def _finish(self) -> None:
        if not self._over.done():
            self._over.set_result(None)

    async def _stop(self) -> None:
        """Cancel what is left, in order, and wait until each request has been delivered."""
        self._stopping = True
        for timer in self._arrivals.values():
            timer.cancel()
        left = list(self._active)
        for task in left:
            task.cancel()
        for task in left:
            await asyncio.wait((task,))
        self._report_progress()

    def _report_progress(self) -> None:
        snapshot = self._tally.snapshot()
        for listener in self._listeners:
            listener.on_progress(snapshot)


def _family(sessions: Sequence[Session]) -> tuple[list[Session], dict[tuple[str, int], list[Session]]]:
    """Return the sessions that start by themselves, and the others by the turn that starts them."""
    turns = {session.id: len(session.turns) for session in sessions}
    if len(turns) != len(sessions):
        raise UsageError("load: two sessions have the same id; requests are named after them, so rename one")
    roots: list[Session] = []
    children: dict[tuple[str, int], list[Session]] = {}
    for session in sessions:
        parent = parent_turn(session)
        if parent is None or parent[1] >= turns.get(parent[0], 0):
            roots.append(session)  # its parent may have been left out of the replay
        else:
            children.setdefault(parent, []).append(session)
    return roots, children


@contextlib.contextmanager
def _traces_out_of_gc() -> Iterator[None]:
    """Keep what exists now, above all the loaded traces, out of the garbage collector's walks.

    A full collection over a million messages would stop the client for tenths of a second. In virtual time that
    costs nobody anything, and what was frozen counts as old: a process of many runs would keep all their garbage.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _rate_ceiling(plan: LoadPlan, loop: asyncio.AbstractEventLoop) -> Callable[[], Awaitable[None]] | None:
    """Return what to await before each request; it polls every 10 ms, so it is a ceiling, not a pace."""
    if plan.rate_max_per_s is None:
        return None
    if isinstance(loop, VirtualLoop):
        raise UsageError(
            "load: rate_max_per_s is a ceiling for real servers and counts real seconds; "
            "in simulated time give the arrivals a shape instead, e.g. poisson"
        )
    requests = max(1, round(plan.rate_max_per_s))
    acquire: Callable[[], Awaitable[None]] = Throttler(requests, requests / plan.rate_max_per_s).acquire
    return acquire
