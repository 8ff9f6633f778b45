"""Makes the runs of a night on a pool of workers that share this machine's disk."""

import time
from collections.abc import Iterator
from pathlib import Path

from msgspec.structs import replace

from repro.base.errors import RecordError, ReproError, TargetError
from repro.base.verdict_word import VerdictWord
from repro.fleet.nightly.job import Job, JobResult, died
from repro.fleet.runs import make_run
from repro.pool.call import Died, Pool
from repro.record.counts import session_hits
from repro.record.view import open_run
from repro.run.outcome import Outcome


def runs_on(pool: Pool, folder: Path, jobs: Iterator[Job]) -> Iterator[JobResult]:
    """Yield the jobs' results as they end; the run folders are in `folder`. Raises RecordError for a full disk."""
    for job, result in pool.results(execute, (replace(job, root=str(folder)) for job in jobs)):
        yield died(job, result.why) if isinstance(result, Died) else result


def execute(job: Job) -> JobResult:
    """Make a run in this process and return its result. Raises RecordError for a full disk."""
    started_s = time.monotonic()
    return replace(_executed(job), took_s=round(time.monotonic() - started_s, 3))


def _executed(job: Job) -> JobResult:
    try:
        outcome = make_run(job)
    except RecordError:
        raise
    except ReproError as error:
        lost = bool(job.url) and isinstance(error, TargetError)
        return died(job, str(error), run_dir=error.run_dir, target_lost=lost)
    except Exception as error:  # counted as a run that died; the others of the night go on
        return died(job, f"a bug of the harness: {type(error).__name__}: {error}")
    return _result(job, outcome)


def _result(job: Job, outcome: Outcome) -> JobResult:
    verdict, records = outcome.verdict, open_run(outcome.path).requests
    return JobResult(
        job.key, job.case, job.role, job.seed, verdict.word, verdict.why,
        requests=len(records),
        sessions=session_hits(records, blind=verdict.detectors["canary"] == "not_applicable"),
        signatures=verdict.signatures,
        detectors=tuple(name for name, answer in verdict.detectors.items() if answer == "anomaly"),
        first_requests=min((first.requests for first in verdict.first.values()), default=None),
        tokens=sum(record.completion_tokens for record in records),
        duration_s=verdict.virtual_s,
        fingerprint=outcome.fingerprint,
        run_dir=str(outcome.path),
        target_lost=bool(job.url) and verdict.word == VerdictWord.FAILED,
    )  # fmt: skip
