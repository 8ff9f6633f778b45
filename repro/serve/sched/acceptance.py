"""Counts of one request's speculation, under the names that SGLang gives them.

spec_accept_length = completion tokens / verify steps      counts the model's own token: at least 1
spec_accept_rate   = accepted drafts / (verify steps * drafts of a step)
"""

from repro.serve.types import Speculation

WINDOW_TOKENS = 64  # an average over a whole answer hides where a corruption begins


class Acceptance:
    """Running counts; the scheduler adds each verify step of the request."""

    def __init__(self, drafts: int) -> None:
        self._histogram = [0] * (drafts + 1)  # verify steps by accepted drafts
        self._windows: list[float] = []
        self._window_tokens = 0
        self._window_steps = 0

    def add(self, tokens: int) -> None:
        """Count one verify step that gave so many tokens of the answer, one more than accepted drafts."""
        self._histogram[tokens - 1] += 1
        self._window_tokens += tokens
        self._window_steps += 1
        if self._window_tokens >= WINDOW_TOKENS:
            self._windows.append(self._window_tokens / self._window_steps)
            self._window_tokens = self._window_steps = 0

    def counts(self, completion_tokens: int) -> Speculation:
        """Return the counts as they are now."""
        return Speculation(completion_tokens, tuple(self._histogram), tuple(self._windows))
