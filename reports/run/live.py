"""How a run is going, while it goes: a redrawn line or two on a terminal, plain lines into a file."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType

import msgspec
from rich.console import Console
from rich.live import Live
from rich.text import Text

REDRAW_S = 0.1
PLAIN_S = 5.0
RATE_WINDOW_S = 5.0
GAP = "  "


class Progress(msgspec.Struct, frozen=True):
    """Where a run stands. Counts only grow; `what` names the present phase."""

    what: str = "load"
    sessions_done: int = 0
    sessions: int = 0
    requests_done: int = 0
    requests_open: int = 0
    tokens: int = 0
    ttft_ms: float | None = None  # median so far
    found: Mapping[str, int] = {}  # findings so far, by detector; "text" for those of answers
    virtual_s: float | None = None  # None for a target in real time


class LiveView:
    """Shows progress on the console; use it as a context. `update` may be called as often as you like.

    `clock_s` is real time, monotonic; only how often something is drawn depends on it.
    """

    def __init__(self, console: Console, clock_s: Callable[[], float]) -> None:
        self._console = console
        self._clock_s = clock_s
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._last = Progress()
        self._drawn: Progress | None = None
        self._drawn_s = float("-inf")
        self._samples: deque[tuple[float, int]] = deque()

    def __enter__(self) -> "LiveView":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
        elif self._drawn is not None and self._drawn != self._last:
            self._draw(self._clock_s())

    def update(self, progress: Progress) -> None:
        """Take where the run stands now."""
        now_s = self._clock_s()
        self._last = progress
        if now_s - self._drawn_s >= (PLAIN_S if self._live is None else REDRAW_S):
            self._draw(now_s)

    def _draw(self, now_s: float) -> None:
        self._samples.append((now_s, self._last.tokens))
        while len(self._samples) > 2 and now_s - self._samples[0][0] > RATE_WINDOW_S:
            self._samples.popleft()
        self._drawn, self._drawn_s = self._last, now_s
        parts = progress_parts(self._last, self._tokens_per_s())
        if self._live is not None:
            self._live.update(Text("\n".join(lines_of(parts, self._console.width))), refresh=True)
        else:
            self._console.print(GAP.join(parts), highlight=False, markup=False, emoji=False, soft_wrap=True)

    def _tokens_per_s(self) -> float | None:
        (first_s, first), (last_s, last) = self._samples[0], self._samples[-1]
        return (last - first) / (last_s - first_s) if last_s > first_s else None


def progress_parts(progress: Progress, tokens_per_s: float | None) -> list[str]:
    """Return for a reader: phase, sessions, requests, speed, time to first token, findings, virtual time."""
    sessions = f"sessions {progress.sessions_done:,}"
    if progress.sessions:
        sessions += f" of {progress.sessions:,}"
    parts = [
        progress.what,
        sessions,
        f"requests {progress.requests_done:,} (+{progress.requests_open:,} open)",
    ]
    if tokens_per_s is not None:
        parts.append(f"{tokens_per_s:,.0f} tokens/s")
    if progress.ttft_ms is not None:
        parts.append(f"TTFT {progress.ttft_ms:,.0f} ms")
    parts += [f"{detector} {count:,}" for detector, count in progress.found.items()] or ["nothing found"]
    if progress.virtual_s is not None:
        parts.append(f"virtual {progress.virtual_s:,.2f} s")
    return parts


def lines_of(parts: Sequence[str], width: int) -> list[str]:
    """Return the parts in as few lines as they need; none is torn."""
    lines = [parts[0]]
    for part in parts[1:]:
        if len(lines[-1]) + len(GAP) + len(part) < width:
            lines[-1] += GAP + part
        else:
            lines.append(part)
    return lines
