"""One run of a night: the job that a worker gets, and the result that the journal stores."""

from typing import Literal

import msgspec

from repro.fleet.runs import PlannedRun

Role = Literal["silent", "found", "reference"]
JUDGED = ("clean", "anomaly")  # verdicts of runs that judged the stack


class Job(PlannedRun, frozen=True, kw_only=True):
    """A run of a case; `key` is unique in its night."""

    case: str
    role: Role

    @property
    def key(self) -> str:
        """Return the job's name in the journal."""
        return f"{self.case}.{self.role}.{self.seed}"


class JobResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """The result of a run. `verdict` is "died" for a run without one; `why` then has the reason."""

    key: str
    case: str
    role: Role
    seed: int
    verdict: str
    why: tuple[str, ...] = ()
    requests: int = 0
    sessions: tuple[tuple[int, int], ...] = ()  # (wrong requests, requests) of each session
    signatures: dict[str, int] = {}
    detectors: tuple[str, ...] = ()  # those that convicted
    first_requests: int | None = None  # sent until the first finding
    tokens: int = 0
    duration_s: float = 0.0  # the load's time, virtual on the bundled stack
    fingerprint: str = ""
    run_dir: str = ""
    at_s: float = 0.0  # time of the night at which it ended
    took_s: float = 0.0  # wall clock of the machine that made it
    target_lost: bool = False  # the server is gone: what was measured before counts, the rest is unknown

    @property
    def judged_sessions(self) -> tuple[tuple[int, int], ...]:
        """Return the sessions that a rate may count: none of a run that was vacuous or undecided."""
        return self.sessions if self.verdict in JUDGED else ()


def died(job: Job, why: str, *, run_dir: str = "", target_lost: bool = False) -> JobResult:
    """Return the result of a job that came to no verdict."""
    return JobResult(job.key, job.case, job.role, job.seed, "died", (why,), run_dir=run_dir, target_lost=target_lost)
