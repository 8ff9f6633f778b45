"""The folder of a run while it is written: `runs/<scenario>/<utc>-<seed>/`.

scenario.toml     the scenario as it was run
run.json          RunMeta: versions, seed, config, state, verdict; always whole
events.jsonl.zst  what happened, in order: JSON lines, packed (`zstdcat`)
requests.jsonl    one line per request while it runs; becomes requests.parquet at the end
findings.jsonl    what the detectors found
report.html       made by `reports`
"""

import os
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec

from repro.base.errors import RecordError
from repro.base.probe import Event, LimitEvent
from repro.record.events import Fingerprint, Found, encode_line
from repro.record.lines import NEXT_STEP, LineFile
from repro.record.log import EVENT_BYTES_MAX, LOG, EventLog
from repro.record.redact import redacted_finding, redacted_request
from repro.record.requests import RequestRecord
from repro.record.table import read_request_lines, write_table
from repro.record.verdict import DetectorAnswer, RunVerdict

FORMAT = 1
STAMP = "%Y%m%dT%H%M%SZ"
REQUEST_BYTES_MAX = 2**30
FINDING_BYTES_MAX = 256 * 2**20
SAME_SECOND_MAX = 100  # runs of one scenario and seed within one second

State = Literal["running", "finished", "interrupted", "failed"]


class RunMeta(msgspec.Struct, frozen=True):
    """What run.json holds. `state` stays "running" when the process was killed."""

    scenario: str
    seed: int
    utc: str
    state: State = "running"
    error: str = ""  # why it failed, one sentence
    versions: dict[str, str] = {}
    config: dict[str, object] = {}
    detectors: dict[str, DetectorAnswer] = {}
    events: int = 0
    dropped_events: int = 0
    verdict: RunVerdict | None = None
    format: int = FORMAT


def utc_stamp(utc: datetime) -> str:
    """Return a time as names of folders and run.json have it."""
    return utc.astimezone(UTC).strftime(STAMP)


class RunFolder:
    """Owns all files of one run until `close`. Raises RecordError, once, when the disk refuses."""

    def __init__(
        self, path: Path, meta: RunMeta, *, event_bytes_max: int = EVENT_BYTES_MAX, redact: bool = False
    ) -> None:
        self.path = path
        self._redact = redact  # texts of requests and findings stay out
        self.meta = meta
        self.fingerprint = Fingerprint()
        self._closed = False
        self._failure: Exception | None = None
        self._full: set[str] = set()  # files that reached their limit
        write_meta(path, meta)
        self.log = EventLog(path / LOG, self.fingerprint, bytes_max=event_bytes_max)
        self._requests = LineFile(path / "requests.jsonl", bytes_max=REQUEST_BYTES_MAX)
        self._findings = LineFile(path / "findings.jsonl", bytes_max=FINDING_BYTES_MAX)

    @classmethod
    def create(
        cls,
        root: Path,
        meta: RunMeta,
        scenario_toml: str = "",
        *,
        event_bytes_max: int = EVENT_BYTES_MAX,
        redact: bool = False,
    ) -> "RunFolder":
        """Make a new folder under `root`, with its scenario and a run.json that says "running"."""
        name = re.sub(r"[^\w.-]+", "-", meta.scenario).strip(".-") or "unnamed"
        path = _new_folder(root / name, f"{meta.utc}-{meta.seed}")
        try:
            (path / "scenario.toml").write_text(scenario_toml, encoding="utf-8")
        except OSError as error:
            raise RecordError(f"{path}: cannot be written ({error.strerror}). {NEXT_STEP}") from error
        return cls(path, meta, event_bytes_max=event_bytes_max, redact=redact)

    @property
    def report_path(self) -> Path:
        """Return where the HTML report belongs."""
        return self.path / "report.html"

    def emit(self, event: Event) -> None:
        """Record the next event."""
        try:
            self.log.emit(event)
        except RecordError as error:
            self._refused(error)

    def add_request(self, record: RequestRecord) -> None:
        """Record a request; a later record of the same request and attempt replaces it."""
        written = redacted_request(record) if self._redact else record
        self._append(self._requests, encode_line(written), 0.0)

    def add_finding(self, finding: Found) -> None:
        """Record a finding, a msgspec struct, and take it into the fingerprint."""
        self.fingerprint.add_finding(finding)
        written = redacted_finding(finding) if self._redact and isinstance(finding, msgspec.Struct) else finding
        self._append(self._findings, encode_line(written), finding.at_us)

    def close(
        self,
        state: Literal["finished", "interrupted", "failed"],
        *,
        verdict: RunVerdict | None = None,
        detectors: Mapping[str, DetectorAnswer] | None = None,
        error: str = "",
    ) -> None:
        """End the run: all files whole, requests as a table, run.json with the verdict.

        Every step is tried. Later calls do nothing, but after an exception (Ctrl-C) the folder may be closed again.
        Raises RecordError when the disk refuses for the first time.
        """
        if self._closed:
            return
        before = self._failure
        self.meta = msgspec.structs.replace(
            self.meta,
            state=state,
            error=error,
            detectors=dict(detectors or {}),
            events=self.log.events,
            dropped_events=self.log.dropped_events,
            verdict=verdict,
        )
        for step in (self.log.close, self._findings.close, self._requests.close, self._tabulate):
            self._attempt(step)
        self._attempt(lambda: write_meta(self.path, self.meta))
        self._closed = True
        if before is None and self._failure is not None:
            raise RecordError(str(self._failure)) from self._failure

    def _tabulate(self) -> None:
        lines = self.path / "requests.jsonl"
        if lines.exists():
            write_table(self.path / "requests.parquet", read_request_lines(lines))
            lines.unlink()

    def _attempt(self, step: Callable[[], None]) -> None:
        try:
            step()
        except (OSError, RecordError) as error:
            self._failure = self._failure or error

    def _record(self, step: Callable[[], object]) -> None:
        try:
            step()
        except RecordError as error:
            self._refused(error)

    def _refused(self, error: RecordError) -> None:
        """Raise the first refusal of the disk; swallow later ones."""
        raised_before, self._failure = self._failure is not None, self._failure or error
        if not raised_before:
            raise error

    def _append(self, file: LineFile, line: bytes, at_us: float) -> None:
        def step() -> None:
            name = file.path.name
            if not file.append(line) and self._failure is None and name not in self._full:
                self._full.add(name)
                self.log.emit(LimitEvent(name, at_us, {"lines": file.lines}))

        self._record(step)


def _new_folder(parent: Path, name: str) -> Path:
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for number in range(1, SAME_SECOND_MAX + 1):
            path = parent / (name if number == 1 else f"{name}-{number}")
            try:
                path.mkdir()
            except FileExistsError:
                continue
            return path
    except OSError as error:
        raise RecordError(f"{parent}: no folder can be made there ({error.strerror}). {NEXT_STEP}") from error
    raise RecordError(f"{parent}/{name}: {SAME_SECOND_MAX} runs have that name; wait a second and run again.")


def write_meta(folder: Path, meta: RunMeta) -> None:
    """Write run.json; the old one stays until the new one is whole on the disk. Raises RecordError."""
    unfinished = folder / "run.json.unfinished"
    try:
        with unfinished.open("wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(meta), indent=2) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, folder / "run.json")
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        message = f"{folder / 'run.json'}: cannot be written ({error.strerror}). {NEXT_STEP}"
        raise RecordError(message) from error
