"""The event log of a run: `events.jsonl.zst`, written while the run goes on; `zstdcat` shows its JSON lines."""

import threading
from collections.abc import Iterator
from pathlib import Path

import zstandard

from repro.base.errors import RecordError
from repro.base.probe import AnyEvent, Event, LimitEvent
from repro.record.events import Fingerprint, decode_event, encode_line
from repro.record.lines import CHANGED, LineFile, read_lines

LOG = "events.jsonl.zst"
PLAIN_LOG = "events.jsonl"  # older runs wrote it, and who has unpacked a log; it counts where there are both
EVENT_BYTES_MAX = 2 * 2**30  # of JSON lines, about seven million operations
FRAME_BYTES = 256 * 2**10  # of JSON lines; frames of 1 MiB are 2 % shorter
LEVEL = 1  # of zstd: higher ones take longer, and these lines come out no shorter
FLUSH_S = 1.0
LIMIT_EVENT_BYTES = 1024  # kept free for the event that says that the limit was reached


class EventLog:
    """Takes events in order, fingerprints all of them, and writes them down.

    Lines wait in memory until there are `FRAME_BYTES` of them, or for `flush_s`; then they become one zstd frame. So
    a killed process loses at most the last second, and a frame that the kill cuts off spoils none before it.
    At `bytes_max` of lines a `LimitEvent` is the last one; later events are counted in `dropped_events` and still
    enter the fingerprint, so a limit never changes it.
    """

    def __init__(
        self,
        path: Path,
        fingerprint: Fingerprint,
        *,
        bytes_max: int = EVENT_BYTES_MAX,
        flush_s: float = FLUSH_S,
    ) -> None:
        self.events = 0
        self.dropped_events = 0
        self._fingerprint = fingerprint
        self._bytes_max = bytes_max
        packer = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True)
        self._file = LineFile(path, bytes_max=bytes_max, buffer_bytes=FRAME_BYTES, pack=packer.compress)
        self._closing = threading.Event()
        # A thread, because a long step of the model emits nothing that could trigger a flush.
        self._flusher = threading.Thread(target=self._flush_every, args=(flush_s,), daemon=True)
        self._flusher.start()

    def emit(self, event: Event) -> None:
        """Take the next event. Raises RecordError once when the disk refuses; drops events from then on."""
        line = encode_line(event)
        self._fingerprint.add_line(event, line)
        self.events += 1
        if self.dropped_events:
            self.dropped_events += 1
            return
        room = self._bytes_max - LIMIT_EVENT_BYTES - self._file.size_bytes
        try:
            if len(line) > room:
                self._file.append(encode_line(self._limit_reached(event)))
            elif self._file.append(line):
                return
        except RecordError:
            self.dropped_events += 1
            raise
        self.dropped_events += 1

    def _limit_reached(self, event: Event) -> LimitEvent:
        written = self.events - 1
        return LimitEvent("event_log", time_us(event), {"bytes_max": self._bytes_max, "events": written})

    def flush(self) -> None:
        """Make all events so far readable by others."""
        self._file.flush()

    def close(self) -> None:
        """Write what is left; a second call does nothing."""
        self._closing.set()
        self._flusher.join()
        self._file.close()

    def _flush_every(self, seconds: float) -> None:
        while not self._closing.wait(seconds):
            self._file.flush()


def log_of(folder: Path) -> Path:
    """Return where a run folder has its log; there need not be one."""
    plain = folder / PLAIN_LOG
    return plain if plain.exists() else folder / LOG


def read_events(path: Path) -> Iterator[AnyEvent]:
    """Yield the events of a log, lazily, without a torn last line. Raises RecordError with file and line."""
    for number, line in read_lines(path):
        try:
            event = decode_event(line)
        except RecordError as error:
            raise RecordError(f"{path}:{number}: {error}. {CHANGED}") from error
        yield event


def time_us(event: Event) -> float:
    """Return when the event happened (an operation: when it ended); 0 for those without a time."""
    at_us: float = getattr(event, "end_us", getattr(event, "at_us", 0.0))
    return at_us
