"""What ends a run early: its bounds, and Ctrl-C. What was done until then is judged."""

import asyncio
from collections.abc import Callable

INTERRUPTED = "Ctrl-C ended the run early"


class LimitWatch:
    """Counts requests and looks at a clock; what is reached first cancels the load's driver.

    Real time and Ctrl-C cut a run by accident: only the events before `cut_at` come again.
    """

    def __init__(
        self, wall_s: float, requests_max: int, clock_s: Callable[[], float], events: Callable[[], int] = lambda: 0
    ) -> None:
        self.reached = ""  # which, in words
        self.by_accident = False
        self.cut_at = 0  # how many events there were
        self._wall_s = wall_s
        self._requests_max = requests_max
        self._clock_s = clock_s
        self._events = events
        self._started_s = clock_s()
        self._requests = 0
        self._driver: asyncio.Task[object] | None = None

    @property
    def seconds_left(self) -> float:
        """Return how much time is left."""
        return max(0.0, self._wall_s - (self._clock_s() - self._started_s))

    def guard(self, driver: "asyncio.Task[object]") -> None:
        """Name the task to cancel; a cancelled driver delivers what is under way."""
        self._driver = driver

    def request(self) -> None:
        """Count a request that is about to be sent."""
        self._requests += 1
        if self._requests > self._requests_max:
            self._end(f"the limit of {self._requests_max:,} requests (limits.requests) was reached", by_accident=False)

    def look(self) -> bool:
        """Return whether the time is up; ends the load if it is."""
        over = self.seconds_left <= 0
        if over:
            self._end(f"the limit of {self._wall_s:,.0f} s (limits.wall_s) was reached", by_accident=True)
        return over

    def interrupt(self) -> None:
        """Somebody has pressed Ctrl-C."""
        self._end(INTERRUPTED, by_accident=True)

    def _end(self, why: str, *, by_accident: bool) -> None:
        if self.reached:
            return
        self.reached, self.by_accident, self.cut_at = why, by_accident, self._events()
        if self._driver is not None:
            self._driver.cancel()
