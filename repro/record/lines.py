"""Append-only files of lines, that survive kills, Ctrl-C and full disks up to their last whole line."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

from repro.base.errors import RecordError

NEXT_STEP = (
    "What was recorded so far stays readable. Free some space, or choose another folder for runs, and run again."
)
CHANGED = "The file was changed after the run; make the run again."


class LineFile:
    """A file that only grows, line by line; one owner appends, any thread may flush.

    Up to `buffer_bytes` wait in memory. Written bytes and the place where they belong change in one
    assignment, so an exception between any two steps (Ctrl-C) repeats a write at worst, never a line.
    """

    def __init__(self, path: Path, *, bytes_max: int, buffer_bytes: int = 0) -> None:
        self.path = path
        self.lines = 0
        self._bytes_max = bytes_max
        self._buffer_bytes = buffer_bytes
        self._tail: tuple[int, bytearray] = (0, bytearray())  # (offset in the file, bytes that belong there)
        self._lock = threading.Lock()
        self._failure: OSError | None = None
        self._raised = False
        try:
            self._file: int | None = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise RecordError(f"{path}: cannot be created ({error.strerror}). {NEXT_STEP}") from error

    @property
    def size_bytes(self) -> int:
        """Return how long the file is, waiting bytes included."""
        offset, waiting = self._tail
        return offset + len(waiting)

    def append(self, line: bytes) -> bool:
        """Take a line (without newline); False when the limit is reached or the file is closed or broken.

        Raises RecordError the first time that the disk refuses.
        """
        with self._lock:
            writable = self._file is not None and self._failure is None
            taken = writable and self.size_bytes + len(line) + 1 <= self._bytes_max
            if taken:
                self._tail[1].extend(line + b"\n")
                self.lines += 1
                if len(self._tail[1]) > self._buffer_bytes:
                    self._drain()
        self._raise_once()
        return taken

    def flush(self) -> None:
        """Hand all waiting lines to the system; a refusal is raised by the owner's next call."""
        with self._lock:
            self._drain()

    def close(self) -> None:
        """Flush and close; a second call does nothing."""
        with self._lock:
            self._drain()
            if self._file is not None:
                os.close(self._file)
                self._file = None
        self._raise_once()

    def _drain(self) -> None:
        while self._tail[1] and self._file is not None and self._failure is None:
            offset, waiting = self._tail
            try:
                written = os.pwrite(self._file, waiting, offset)
            except OSError as error:
                self._failure = error
                return
            self._tail = (offset + written, waiting[written:])

    def _raise_once(self) -> None:
        if self._failure is None or self._raised:
            return
        self._raised = True
        reason = self._failure.strerror or str(self._failure)
        message = f"{self.path}: cannot be written any further ({reason}). {NEXT_STEP}"
        raise RecordError(message) from self._failure


def write_whole(path: Path, content: bytes, next_step: str = NEXT_STEP) -> None:
    """Write a file that appears whole or not at all. Raises RecordError when the disk refuses."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(content)
        unfinished.replace(path)
    except OSError as error:
        raise RecordError(f"{path}: cannot be written ({error.strerror}). {next_step}") from error


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (line number from 1, line without its newline); a torn last line is left out.

    A missing file has no lines.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        for number, line in enumerate(file, start=1):
            if line.endswith(b"\n"):
                yield number, line[:-1]
