"""How a run folder is opened: with its scenario, and with all that the run depends on."""

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import msgspec

from repro.record.folder import RunFolder, RunMeta, utc_stamp
from repro.run.options import RunOptions
from repro.scenario.schema import Scenario
from repro.schedule import token
from repro.trace.format import Session


def open_folder(
    root: Path,
    utc: datetime,
    scenario: Scenario,
    options: RunOptions,
    sessions: Sequence[Session],
    engine: Mapping[str, str],
) -> RunFolder:
    """Make the folder of a run; `engine` has versions of engines outside this package. Raises RecordError."""
    needed = versions() | dict(engine) | {"sessions": hash_of(sessions)}
    meta = RunMeta(scenario.name, options.seed, utc_stamp(utc), versions=needed, config=msgspec.to_builtins(options))
    return RunFolder.create(root, meta, scenario.source, redact=options.redact)


def versions() -> dict[str, str]:
    """Return the versions that a run depends on."""
    names = ("glm5-repro", "torch", "numpy", "tokenizers")
    return {name: version(name) for name in names} | {"machine": token.machine_class(), "code": token.code_hash().hex()}


def hash_of(sessions: Sequence[Session]) -> str:
    """Return a digest of the sessions: another one means that a trace file has changed."""
    total = hashlib.sha256()
    for session in sessions:
        total.update(msgspec.json.encode(session))
    return total.hexdigest()[:16]
