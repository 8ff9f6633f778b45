"""A suite at a size that a test can afford, results without a run, and workers that run nothing."""

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from repro.fleet.nightly.job import Job, JobResult
from repro.fleet.nightly.suite import Suite, parse_suite

SCENARIO = """
format = 1
title = "small"
defects = ["pd_reuse_before_drain"]

[target]
config = "tiny"
numerics = "stamps"
device_pages = 96
context_tokens = 1024
rows = 8
pd = { prefill = 3, decode = 1, transfer_timeout_s = 0.6 }

[load]
sessions = 8
concurrency = 5
turns = 3
prompt_tokens = 700
gap_s = [0.1, 0.4]
answer_tokens_max = 40

[[fault]]
at = "transfer.write"
when = { probability = 0.2 }
do = { kind = "delay", us = 60000 }
"""
SUITE = """
format = 1
title = "A small suite"

[[case]]
scenario = "{scenario}"
name = "small"
seeds = {seeds}
check = ["silent", "found"]
{more}
"""


def suite_file(folder: Path, *, seeds: int = 2, more: str = "") -> Path:
    """Write a suite of one small scenario and return its path."""
    scenario = folder / "small.toml"
    scenario.write_text(SCENARIO)
    path = folder / "tests.toml"
    path.write_text(SUITE.format(scenario=scenario, seeds=seeds, more=more))
    return path


def make_suite(folder: Path, *, seeds: int = 2, more: str = "") -> Suite:
    """Return that suite, parsed."""
    path = suite_file(folder, seeds=seeds, more=more)
    return parse_suite(path.read_text(), path.stem, str(path))


def make_result(job: Job, **values: object) -> JobResult:
    """Return what a job may have come to: clean where it is silent, found by its third request where it is not."""
    found = job.role == "found"
    result = JobResult(
        job.key, job.case, job.role, job.seed, "anomaly" if found else "clean",
        requests=6,
        sessions=((1, 3), (0, 3)) if found else ((0, 3), (0, 3)),
        signatures={"ordering: a x b": 2} if found else {},
        first_requests=3 if found else None,
        tokens=100,
        duration_s=10.0,
        fingerprint=f"{job.seed:08x}",
    )  # fmt: skip
    return msgspec.structs.replace(result, **values)  # type: ignore[arg-type]


class PretendedRuns:
    """Comes to what `answer` says, by turns with the newest and the oldest of what is under way."""

    def __init__(self, answer: Callable[[Job], JobResult] = make_result, workers: int = 3) -> None:
        self.made: list[str] = []
        self._answer = answer
        self._workers = workers

    def __call__(self, jobs: Iterator[Job]) -> Iterator[JobResult]:
        running: list[Job] = []
        while True:
            while len(running) < self._workers and (job := next(jobs, None)) is not None:
                running.append(job)
            if not running:
                return
            job = running.pop(-(len(self.made) % 2))
            self.made.append(job.key)
            yield self._answer(job)
