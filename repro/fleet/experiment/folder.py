"""The folder of an experiment: what it was, and the verdict of each run that has ended.

runs/<experiment>/<utc>-<seed>/
  experiment.toml, plan.json   what runs here; a resume refuses another plan
  scenarios/, traces/          the parts' scenario files, and the bad requests that are asked again
  results/PART-SEED.json       one verdict each; what is here is not run again
  runs/                        the run folders
  result.json, report.html     made at the end
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import msgspec

from repro.base.errors import UsageError
from repro.fleet.experiment.plan import Experiment, Part
from repro.record.folder import STAMP
from repro.record.lines import write_whole
from repro.record.verdict import RunVerdict
from repro.schedule.token import code_hash

PLAN = "plan.json"


class Plan(msgspec.Struct, frozen=True):
    """What must be the same for a resume."""

    experiment: str
    first_seed: int
    seeds_max: int | None
    source: str
    code: str


class ExperimentFolder:
    """Owns the files of one experiment. Raises RecordError when the disk refuses."""

    def __init__(self, path: Path, plan: Plan) -> None:
        self.path = path
        self.plan = plan
        self.runs = path / "runs"
        self.report = path / "report.html"
        self.result = path / "result.json"

    @classmethod
    def create(cls, root: Path, experiment: Experiment, utc: datetime, *, first: int, seeds: int | None) -> Self:
        """Make a new folder under `root`."""
        path = root / experiment.name / f"{utc.astimezone(UTC).strftime(STAMP)}-{first}"
        folder = cls(path, _plan(experiment, first, seeds))
        if (path / PLAN).exists():
            raise UsageError(f"{path}: there already; wait a second, or continue it: --resume {path}")
        folder.write("experiment.toml", experiment.source.encode())
        folder.write(PLAN, msgspec.json.encode(folder.plan))
        return folder

    @classmethod
    def resume(cls, path: Path, experiment: Experiment, *, first: int, seeds: int | None) -> Self:
        """Open the folder of an experiment that was stopped. Raises UsageError for another plan or other code."""
        try:
            plan = msgspec.json.decode((path / PLAN).read_bytes(), type=Plan)
        except (OSError, msgspec.DecodeError) as error:
            wanted_path = f"runs/{experiment.name}/UTC-SEED"
            raise UsageError(f"--resume {path}: no experiment ({error}); give {wanted_path}") from error
        wanted = _plan(experiment, first, seeds)
        for key in Plan.__struct_fields__:
            if getattr(plan, key) != getattr(wanted, key):
                raise UsageError(
                    f"--resume {path}: its {key.replace('_', ' ')} differs from this command's, so its runs are not "
                    "runs of the same; give the same options and code, or start anew without --resume"
                )
        return cls(path, plan)

    def write(self, name: str, content: bytes) -> Path:
        """Write a file that appears whole or not at all; return its path."""
        path = self.path / name
        write_whole(path, content)
        return path

    def add(self, part: Part, seed: int, verdict: RunVerdict) -> None:
        """Keep what a run came to."""
        self.write(f"results/{part.key}-{seed}.json", msgspec.json.encode(verdict))

    def verdict(self, part: Part, seed: int) -> RunVerdict | None:
        """Return what a run came to; None for one that is still to be run."""
        path = self.path / f"results/{part.key}-{seed}.json"
        return msgspec.json.decode(path.read_bytes(), type=RunVerdict) if path.exists() else None


def _plan(experiment: Experiment, first: int, seeds: int | None) -> Plan:
    return Plan(experiment.name, first, seeds, experiment.source, code_hash().hex())
