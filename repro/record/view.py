"""A recorded run, read-only: finished, interrupted, or killed in the middle."""

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import msgspec

from repro.base.errors import RecordError, UsageError
from repro.base.probe import AnyEvent, Event, unrolled
from repro.record.folder import FORMAT, RunMeta
from repro.record.lines import CHANGED, read_lines
from repro.record.log import log_of, read_events
from repro.record.requests import RequestRecord
from repro.record.table import read_request_lines, read_table
from repro.record.verdict import RunVerdict

WANTED = "give the folder of a run, runs/SCENARIO/UTC-SEED"

FoundStruct = TypeVar("FoundStruct", bound=msgspec.Struct)


class Run:
    """What a run folder holds. Nothing is read before it is asked for."""

    def __init__(self, path: Path, meta: RunMeta) -> None:
        self.path = path
        self.meta = meta

    @property
    def whole(self) -> bool:
        """Return whether the run was closed; False for one that was killed or still runs."""
        return self.meta.state != "running"

    @property
    def verdict(self) -> RunVerdict | None:
        """Return the verdict of run.json, None when the run came to none."""
        return self.meta.verdict

    @property
    def scenario_toml(self) -> str:
        """Return the scenario as it was run."""
        path = self.path / "scenario.toml"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def recorded(self) -> Iterator[AnyEvent]:
        """Yield the events as they were recorded, one at a time from the file; each call starts anew."""
        return read_events(log_of(self.path))

    def events(self) -> Iterator[Event]:
        """Yield the events in order, every operation as an event of its own; each call starts anew."""
        return unrolled(self.recorded())

    @cached_property
    def requests(self) -> list[RequestRecord]:
        """Return the requests in the order they were first recorded."""
        table = self.path / "requests.parquet"
        return read_table(table) if table.exists() else read_request_lines(self.path / "requests.jsonl")

    def findings(self, decode: Callable[[bytes], FoundStruct]) -> list[FoundStruct]:
        """Return the findings; `decode` makes one of a line (`detectors.base.decode_finding`)."""
        path = self.path / "findings.jsonl"
        return [_decode(path, number, line, decode) for number, line in read_lines(path)]


def open_run(path: Path) -> Run:
    """Return the run in this folder (its run.json may be named too). Raises UsageError when there is none."""
    folder = path.parent if path.name == "run.json" else path
    if not folder.exists():
        raise UsageError(f"{folder}: there is no such folder; {WANTED}.")
    file = folder / "run.json"
    if not file.is_file():
        raise UsageError(f"{folder}: this is no run (it has no run.json){_nearest_run(folder)}")
    return Run(folder, _read_meta(file))


def _nearest_run(folder: Path) -> str:
    inside = [*folder.glob("*/run.json"), *folder.glob("*/*/run.json")]
    inside.sort(key=lambda file: file.parent.name)
    if not inside:
        return f"; {WANTED}."
    return f"; it holds {len(inside)} run(s), the newest is {inside[-1].parent}"


def _read_meta(file: Path) -> RunMeta:
    try:
        meta = msgspec.json.decode(file.read_bytes(), type=RunMeta)
    except (msgspec.DecodeError, UnicodeDecodeError, OSError) as error:
        raise UsageError(f"{file}: not the run.json of a run ({error}); {WANTED}.") from error
    if meta.format > FORMAT:
        raise UsageError(
            f"{file}: written in format {meta.format}, this version reads up to {FORMAT}; install a newer version."
        )
    return meta


def _decode(path: Path, number: int, line: bytes, decode: Callable[[bytes], FoundStruct]) -> FoundStruct:
    try:
        return decode(line)
    except msgspec.DecodeError as error:
        raise RecordError(f"{path}:{number}: no finding: {error}. {CHANGED}") from error
