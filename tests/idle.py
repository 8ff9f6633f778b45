"""A simulated world in which only timers happen."""


class IdleWorld:
    """A world of timers only: the clock jumps to the next deadline."""

    def __init__(self, now_us: float = 0.0) -> None:
        self.now_us = now_us

    def advance(self, deadline_us: float | None) -> float:
        """Move to the deadline, or stay when there is none."""
        if deadline_us is not None:
            self.now_us = max(self.now_us, deadline_us)
        return self.now_us
