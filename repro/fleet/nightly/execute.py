"""Makes one run of a night in this process."""

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from repro.base.errors import RecordError, ReproError, TargetError
from repro.fleet.nightly.job import Job, JobResult, session_hits
from repro.record.view import open_run
from repro.run.run import Outcome, RunOptions, run_scenario
from repro.scenario.schema import parse
from repro.schedule.schedule import Schedule


def execute(job: Job, root: Path) -> JobResult:
    """Return what the run came to; its folder is under `root`. Raises RecordError: a full disk is no answer."""
    started_s = time.monotonic()
    result = _execute(job, root)
    return msgspec.structs.replace(result, took_s=round(time.monotonic() - started_s, 3))


def _execute(job: Job, root: Path) -> JobResult:
    died = JobResult(job.key, job.case, job.role, job.seed, "died")
    try:
        scenario = parse(job.toml, job.scenario, job.case)
        schedule = Schedule(job.picker, job.seed if job.picker != "timed" else 0)
        options = RunOptions(job.seed, job.control, schedule=schedule, url=job.url, api=job.api)
        outcome = run_scenario(scenario, options, root=root, utc=datetime.now(UTC), clock_s=time.monotonic)
    except RecordError:
        raise
    except ReproError as error:
        lost = bool(job.url) and isinstance(error, TargetError)
        return msgspec.structs.replace(died, why=(str(error),), run_dir=error.run_dir, target_lost=lost)
    except Exception as error:  # counted as a run that died; the others of the night go on
        return msgspec.structs.replace(died, why=(f"a bug of the harness: {type(error).__name__}: {error}",))
    return _result(job, outcome)


def _result(job: Job, outcome: Outcome) -> JobResult:
    said: Mapping[str, Any] = outcome.verdict
    records = open_run(outcome.path).requests
    first = [each["requests"] for each in said["first"].values()]
    return JobResult(
        job.key, job.case, job.role, job.seed, outcome.judgement.word, outcome.judgement.why,
        requests=len(records),
        sessions=session_hits(records, blind=said["detectors"]["canary"] == "not_applicable"),
        signatures=said["signatures"],
        detectors=tuple(name for name, answer in said["detectors"].items() if answer == "anomaly"),
        first_requests=min(first, default=None),
        tokens=sum(record.completion_tokens for record in records),
        duration_s=said["virtual_s"],
        fingerprint=outcome.fingerprint,
        run_dir=str(outcome.path),
        target_lost=bool(job.url) and outcome.judgement.word == "failed",
    )  # fmt: skip
