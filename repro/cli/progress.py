"""Progress of a run on the terminal: from the driver's snapshots to the live view."""

from collections.abc import Callable, Mapping
from types import TracebackType

import msgspec
from rich.console import Console

from reports.run.live import LiveView, Progress
from repro.load.listener import LoadListener
from repro.load.listener import Progress as LoadProgress


class Watcher(LoadListener):
    """Shows the load, then the oracle. Use it as a context. `simulated`: the load runs in virtual time."""

    def __init__(self, console: Console, clock_s: Callable[[], float], *, simulated: bool = True) -> None:
        self._console = console
        self._view = LiveView(console, clock_s)
        self._simulated = simulated
        self._last = Progress()
        self._found: dict[str, int] = {}

    def __enter__(self) -> "Watcher":
        self._view.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._view.__exit__(kind, error, trace)

    def note(self, text: str) -> None:
        """Say something above the progress."""
        self._console.print(f"note: {text}", highlight=False, markup=False, soft_wrap=True)

    def on_progress(self, snapshot: LoadProgress) -> None:
        """Take a snapshot of the load."""
        self._last = Progress(
            what="load",
            sessions_done=snapshot.sessions_done,
            sessions=snapshot.sessions,
            requests_done=snapshot.requests_done,
            requests_open=snapshot.requests_active,
            tokens=snapshot.tokens,
            ttft_ms=snapshot.ttft.p50_s * 1e3 if snapshot.ttft.count else None,
            found=self._found | ({"text": snapshot.anomalies} if snapshot.anomalies else {}),
            virtual_s=snapshot.at_s if self._simulated else None,
        )
        self._view.update(self._last)

    def on_found(self, counts: Mapping[str, int], first_claim: str) -> None:
        """Count what the detectors of events have found, and say the first finding as soon as it is there."""
        if not self._found:
            self._console.print(f"found: {first_claim}", highlight=False, markup=False, soft_wrap=True)
        self._found = dict(counts)

    def on_check(self, number: int, total: int) -> None:
        """Say how many of the suspect answers have been asked for again."""
        what = "clean decode" if self._simulated else "asked again"
        self._view.update(msgspec.structs.replace(self._last, what=f"{what} {number} of {total}"))
