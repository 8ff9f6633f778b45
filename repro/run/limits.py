"""What ends a run early: its bounds, and Ctrl-C. Everything recorded until then is judged."""

import asyncio
from collections.abc import Callable

from repro.record.verdict import EndedEarly

INTERRUPTED = "Ctrl-C ended the run early"


class LimitWatch:
    """Counts requests and watches a clock; the first limit that is reached cancels the task under way.

    Real time and Ctrl-C cut a run by accident: a replay repeats only the events before the cut.
    """

    def __init__(
        self, wall_s: float, requests_max: int, clock_s: Callable[[], float], events: Callable[[], int] = lambda: 0
    ) -> None:
        self.cut: EndedEarly | None = None
        self.by_accident = False
        self._wall_s = wall_s
        self._requests_max = requests_max
        self._clock_s = clock_s
        self._events = events
        self._started_s = clock_s()
        self._requests = 0
        self._task: asyncio.Task[object] | None = None

    @property
    def seconds_left(self) -> float:
        """Return how much time is left."""
        return max(0.0, self._wall_s - (self._clock_s() - self._started_s))

    def may_cancel(self, task: "asyncio.Task[object]") -> None:
        """Take the task to cancel; a cancelled driver delivers the requests under way."""
        self._task = task

    def count_request(self) -> None:
        """Count a request that is about to be sent."""
        self._requests += 1
        if self._requests > self._requests_max:
            self._end(f"the limit of {self._requests_max:,} requests (limits.requests) was reached", by_accident=False)

    def check_time(self) -> bool:
        """Return whether the time is up; if it is, the task under way is cancelled."""
        if self._clock_s() - self._started_s < self._wall_s:
            return False
        self._end(f"the limit of {self._wall_s:,.0f} s (limits.wall_s) was reached", by_accident=True)
        return True

    def interrupt(self) -> None:
        """End the run after a Ctrl-C."""
        self._end(INTERRUPTED, by_accident=True)

    def _end(self, why: str, *, by_accident: bool) -> None:
        if self.cut is not None:
            return
        self.cut, self.by_accident = EndedEarly(why, self._events()), by_accident
        if self._task is not None:
            self._task.cancel()
