"""What a run hands back to its caller."""

from dataclasses import dataclass
from pathlib import Path

from detectors.base import Finding
from repro.record.verdict import RunVerdict
from repro.schedule.strategies import Exploring


@dataclass(frozen=True)
class Outcome:
    """What a run came to; its verdict is the JSON object of the command line."""

    verdict: RunVerdict
    findings: tuple[Finding, ...] = ()
    explored: Exploring | None = None  # None: a server chooses for itself

    @property
    def path(self) -> Path:
        """Return the run's folder."""
        return Path(self.verdict.run_dir)

    @property
    def fingerprint(self) -> str:
        """Return the run's fingerprint."""
        return self.verdict.fingerprint
