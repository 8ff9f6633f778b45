"""The journal of a night: an append-only file, synced line by line, from which a night resumes after kill -9.

The first line says what night it is, every further one what a run came to. A run without a line is run (again);
one with a line never is. A line that a kill has torn is cut off, and so it is a run without one.
"""

import os
from pathlib import Path
from typing import Self

import msgspec

from repro.base.errors import RecordError, UsageError
from repro.fleet.nightly.job import JobResult
from repro.record.lines import read_lines

FILE = "journal.jsonl"
NEXT_STEP = "free some space, then the same command with --resume goes on; nothing that was measured is lost"


class NightId(msgspec.Struct, frozen=True):
    """What must be the same for a resume."""

    suite: str
    suite_hash: str
    first_seed: int
    defect: str
    target: str
    reference: str
    api: str
    time_s: float | None
    requests: int | None
    baseline: str
    version: str
    code: str
    utc: str  # time of the first start; a resume takes it over


class Journal:
    """Owns the journal's file. Raises RecordError when the disk refuses."""

    def __init__(self, path: Path, night: NightId) -> None:
        self.path = path
        self.night = night
        self.results: dict[str, JobResult] = {}
        self._file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o644)

    @classmethod
    def create(cls, folder: Path, night: NightId) -> Self:
        """Begin a night in a folder that has none. Raises UsageError for one that has."""
        path = folder / FILE
        if path.exists():
            raise UsageError(f"{folder}: there is a night in it; continue it with --resume, or give another --out")
        if folder.exists() and any(folder.iterdir()):  # what is in its runs/ and not in a journal would be pruned
            raise UsageError(f"{folder}: not empty, and no night; give a new folder as --out")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            journal = cls(path, night)
        except OSError as error:
            raise RecordError(f"{path}: cannot be created ({error.strerror}); give another --out") from error
        journal._write(msgspec.json.encode(night))
        return journal

    @classmethod
    def resume(cls, folder: Path, night: NightId) -> Self:
        """Open the journal of a night that was stopped. Raises UsageError where it was another one."""
        path = folder / FILE
        lines = [line for _, line in read_lines(path)]
        if not lines:
            path.unlink(missing_ok=True)  # killed before its first line was whole
            return cls.create(folder, night)
        before = msgspec.json.decode(lines[0], type=NightId)
        for key in NightId.__struct_fields__:
            if key != "utc" and getattr(before, key) != getattr(night, key):
                raise UsageError(
                    f"{folder}: --resume: its {key.replace('_', ' ')} differs from this command's "
                    f"({getattr(before, key)!r}, {getattr(night, key)!r}), so its runs are not runs of the same night; "
                    "give the same options and code, or start anew with another --out"
                )
        try:
            os.truncate(path, sum(len(line) + 1 for line in lines))
            journal = cls(path, before)
        except OSError as error:
            raise RecordError(f"{path}: cannot be written ({error.strerror}); {NEXT_STEP}") from error
        for line in lines[1:]:
            result = msgspec.json.decode(line, type=JobResult)
            journal.results[result.key] = result
        return journal

    def add(self, result: JobResult) -> None:
        """Append a run's result; it is on the disk when this returns."""
        assert result.key not in self.results, f"{result.key} would be counted twice"
        self._write(msgspec.json.encode(result))
        self.results[result.key] = result

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _write(self, line: bytes) -> None:
        line += b"\n"
        try:
            written = os.write(self._file, line)
            if written < len(line):
                raise OSError(28, os.strerror(28))
            os.fsync(self._file)
        except OSError as error:
            raise RecordError(f"{self.path}: cannot be written ({error.strerror}); {NEXT_STEP}") from error
