"""Append-only files of lines, that survive kills, Ctrl-C and full disks up to their last whole line.

A file is plain, or a row of zstd frames: each is whole lines and needs none before it, so `zstdcat` shows the lines.
"""

import io
import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

from repro.base.errors import RecordError

NEXT_STEP = (
    "What was recorded so far stays readable. Free some space, or choose another folder for runs, and run again."
)
CHANGED = "The file was changed after the run; make the run again."
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
WINDOW_BYTES_MAX = 128 * 2**20  # what a frame may ask a reader to keep; `zstd -d` too refuses more
UNPACKED_BYTES = 128 * 2**10  # at once
LINE_BYTES_MAX = 64 * 2**20  # a small frame may hold a line that fills the memory


class LineFile:
    """A file that only grows, line by line; one owner appends, any thread may flush.

    Up to `buffer_bytes` of lines wait in memory; `pack` makes of them what is written. `bytes_max` bounds the lines,
    however short they are packed. Written bytes and the place where they belong change in one assignment, so an
    exception between any two steps (Ctrl-C) repeats a write at worst, never a line.
    """

    def __init__(
        self, path: Path, *, bytes_max: int, buffer_bytes: int = 0, pack: Callable[[bytearray], bytes] = bytes
    ) -> None:
        self.path = path
        self.lines = 0
        self.size_bytes = 0  # of all lines, before they are packed
        self._bytes_max = bytes_max
        self._buffer_bytes = buffer_bytes
        self._pack = pack
        # (offset in the file, packed bytes that belong there, lines behind them)
        self._tail: tuple[int, bytes, bytearray] = (0, b"", bytearray())
        self._lock = threading.Lock()
        self._failure: OSError | None = None
        self._raised = False
        try:
            self._file: int | None = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise RecordError(f"{path}: cannot be created ({error.strerror}). {NEXT_STEP}") from error

    def append(self, line: bytes) -> bool:
        """Take a line (without newline); False when the limit is reached or the file is closed or broken.

        Raises RecordError the first time that the disk refuses.
        """
        with self._lock:
            writable = self._file is not None and self._failure is None
            taken = writable and self.size_bytes + len(line) + 1 <= self._bytes_max
            if taken:
                waiting = self._tail[2]
                self.lines += 1
                self.size_bytes += len(line) + 1
                waiting += line + b"\n"
                if len(waiting) > self._buffer_bytes:
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
        while self._file is not None and self._failure is None:
            offset, packed, waiting = self._tail
            if packed:
                try:
                    written = os.pwrite(self._file, packed, offset)
                except OSError as error:
                    self._failure = error
                    return
                self._tail = (offset + written, packed[written:], waiting)
            elif waiting:
                self._tail = (offset, self._pack(waiting), bytearray())
            else:
                return

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
    """Yield (line number from 1, line without its newline) of a plain or packed file; a torn last line is left out.

    A missing file has no lines. Of a frame that was cut off, the lines that can be unpacked count. Raises RecordError
    behind the last line that can be read when something else follows.
    """
    for number, line in enumerate(raw_lines(path), start=1):
        if line.endswith(b"\n"):
            yield number, line[:-1]


def raw_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of `read_lines` with their newlines; a torn last line, without one, too."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    number = 0
    with file:
        try:
            for number, line in enumerate(iter(partial(_unpacked(file).readline, LINE_BYTES_MAX), b""), start=1):
                if len(line) == LINE_BYTES_MAX:
                    raise RecordError(f"{path}:{number}: the line is longer than {LINE_BYTES_MAX:,} bytes. {CHANGED}")
                yield line
        except zstandard.ZstdError as error:
            raise RecordError(
                f"{path}: damaged behind line {number} ({error}). `zstdcat {path.name} > events.jsonl` keeps the lines "
                "before; in a run's folder these then count."
            ) from error


def _unpacked(file: BinaryIO) -> BinaryIO:
    packed = file.read(len(ZSTD_MAGIC)) == ZSTD_MAGIC
    file.seek(0)
    return io.BufferedReader(_Unpacker(file), UNPACKED_BYTES) if packed else file


class _Unpacker(io.RawIOBase):
    """The bytes in a file of zstd frames. Raises ZstdError only behind the last frame that can be unpacked."""

    def __init__(self, file: BinaryIO) -> None:
        unpacker = zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES_MAX)
        self._reader = unpacker.stream_reader(file, read_across_frames=True)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        some = self._reader.read1(len(buffer))  # its `readinto` would lose what stands before a damaged frame
        buffer[: len(some)] = some
        return len(some)
