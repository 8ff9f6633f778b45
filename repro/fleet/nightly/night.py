"""One night from the suite to the verdict: `nightly` opens it, `run_night` is the whole story.

suite ─> plan ─> jobs ─> workers (processes, or a cluster) ─> journal ─> what counts ─> rows, gates ─> verdict, files
                          └─ run folders ─> evidence stays, clean runs are removed
"""

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path

import msgspec

from reports.night.night import Night, PastNight
from reports.rates import rate_of
from repro.base.errors import UsageError
from repro.fleet.nightly import artefacts
from repro.fleet.nightly.compare import WRONG, compare, side_of_night
from repro.fleet.nightly.evidence import Evidence
from repro.fleet.nightly.execute import runs_on
from repro.fleet.nightly.history import baseline_of, history_of
from repro.fleet.nightly.job import Job, JobResult
from repro.fleet.nightly.journal import Journal, NightId
from repro.fleet.nightly.judge import gate_rows, verdict
from repro.fleet.nightly.plan import BUNDLED, Plan, Target
from repro.fleet.nightly.suite import Suite, find_suite
from repro.fleet.nightly.tally import case_rows, digest, finding_rows
from repro.pool.local import LocalPool
from repro.record.folder import STAMP
from repro.schedule.token import code_hash

RUNS = "runs"
OnDone = Callable[[JobResult], None]
Runs = Callable[[Iterator[Job]], Iterator[JobResult]]  # makes jobs, several at once; yields results as they come


class NightOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a night runs, against what, where it writes, and with what it is compared."""

    suite: str
    root: Path
    out: Path | None = None
    time_s: float | None = None
    requests: int | None = None
    seed: int = 0
    target: Target = Target()
    baseline: str = ""
    resume: bool = False
    workers: int = 2
    ray: str | None = None  # a cluster's address


class Ended(msgspec.Struct):
    """How the runs of a night ended."""

    elapsed_s: float = 0.0
    lost: str = ""  # the target went away
    interrupted: bool = False  # Ctrl-C ended it


def nightly(options: NightOptions, say: Callable[[str], None]) -> Night:
    """Run a night, or go on with one, and return it; `say` hears a line for each run that has ended."""
    options.target.check()
    suite = find_suite(options.suite).with_budget(time_s=options.time_s, requests=options.requests)
    if options.resume and options.out is None:
        raise UsageError("--resume goes on with the night in a folder; say which: --out FOLDER")
    utc = datetime.now(UTC).strftime(STAMP)
    folder = (options.out or options.root / "nightly" / f"{suite.name}-{utc}-{options.seed}").resolve()
    id_ = night_id(suite, options.target, options.seed, options.baseline, utc)
    if options.baseline:  # a wrong one is refused before a journal names it
        baseline_of(options.baseline, history_of(folder, id_), id_)
    journal = Journal.resume(folder, id_) if options.resume else Journal.create(folder, id_)
    plan = Plan(suite, options.target, options.seed)
    progress = _progress(plan, journal, say)
    with _runs(options, folder / RUNS) as runs:
        night = run_night(plan, journal, runs, folder=folder, clock_s=time.monotonic, done=progress)
    journal.close()
    if night.missing:
        say(f"{night.missing} runs are missing; the same command with --out {folder} --resume goes on")
    return night


def _progress(plan: Plan, journal: Journal, say: Callable[[str], None]) -> OnDone:
    of = "" if plan.open_ended else f" of {sum(case.seeds for case, _ in plan.rows)}"
    if journal.results:
        say(f"{len(journal.results)} runs of an earlier start are kept")

    def done(result: JobResult) -> None:
        words = f"{result.case}  {result.role}  seed {result.seed}  {result.verdict}"
        say(f"{len(journal.results)}{of}  {result.at_s:,.0f} s  {words}")

    return done


@contextmanager
def _runs(options: NightOptions, folder: Path) -> Iterator[Runs]:
    """Yield what makes the night's runs, in processes of this machine or on a cluster."""
    if options.ray is None:
        with LocalPool(options.workers) as local:
            yield partial(runs_on, local, folder)
    else:
        from repro.fleet.nightly.remote import runs_on_cluster
        from repro.pool.cluster import RayPool

        with RayPool(options.ray, options.workers) as cluster:
            yield partial(runs_on_cluster, cluster, folder)


def night_id(suite: Suite, target: Target, first_seed: int, baseline: str, utc: str) -> NightId:
    """Return what must be equal for two starts to be of one night."""
    budget = suite.budget
    return NightId(
        suite.name, hashlib.sha256(suite.source.encode()).hexdigest()[:16], first_seed, target.defect,
        target.url or BUNDLED, target.reference, target.api, budget.time_s, budget.requests, baseline,
        version("glm5-repro"), code_hash().hex(), utc,
    )  # fmt: skip


def run_night(
    plan: Plan, journal: Journal, runs: Runs, *, folder: Path, clock_s: Callable[[], float], done: OnDone
) -> Night:
    """Run what the journal does not have yet, write all files of the night, and return it.

    Raises UsageError for a baseline that cannot be compared, before anything runs, and RecordError for a full disk.
    """
    history = history_of(folder, journal.night)
    given = journal.night.baseline
    baseline = baseline_of(given, history, journal.night) if given else None
    evidence = Evidence(folder / RUNS, plan.suite.budget.evidence_bytes)
    evidence.tidy(journal.results)
    ended = _run(plan, journal, runs, evidence, clock_s, done)
    night = _night(plan, journal, history, baseline, evidence, ended, folder)
    artefacts.write_all(folder, night, history)
    return night


def _run(
    plan: Plan, journal: Journal, runs: Runs, evidence: Evidence, clock_s: Callable[[], float], done: OnDone
) -> Ended:
    ended = Ended()
    before_s = max((result.at_s for result in journal.results.values()), default=0.0)
    started_s = clock_s()

    def elapsed_s() -> float:
        return round(before_s + clock_s() - started_s, 3)

    try:
        for result in runs(_needed(plan, journal, elapsed_s, ended)):
            if result.target_lost:  # no word about the stack; a resume runs it again
                ended.lost = ended.lost or f"the target went away: {'; '.join(result.why)}"
                continue
            result = msgspec.structs.replace(result, at_s=elapsed_s())
            journal.add(result)
            evidence.keep(result)
            done(result)
    except KeyboardInterrupt:
        ended.interrupted = True
    ended.elapsed_s = elapsed_s()
    return ended


def _needed(plan: Plan, journal: Journal, elapsed_s: Callable[[], float], ended: Ended) -> Iterator[Job]:
    """Yield the jobs that are still to be run, as long as the budgets last and nothing makes them needless."""
    budget, results = plan.suite.budget, journal.results
    waited_for: deque[Job] = deque()  # jobs, in order, that `requests` does not count yet
    known, known_of = plan.known(results), len(results)
    requests = 0
    for job in plan.jobs():
        if len(results) != known_of:
            known, known_of = plan.known(results), len(results)
        while waited_for and (plan.needless(waited_for[0], known) or waited_for[0].key in results):
            passed = waited_for.popleft()
            requests += 0 if plan.needless(passed, known) else results[passed.key].requests
        if ended.lost or (budget.time_s is not None and elapsed_s() >= budget.time_s):
            return
        if budget.requests is not None and requests >= budget.requests:
            return
        waited_for.append(job)
        if job.key not in results and (job.case, job.role) not in known:
            yield job


def _night(
    plan: Plan,
    journal: Journal,
    history: list[PastNight],
    baseline: PastNight | None,
    evidence: Evidence,
    ended: Ended,
    folder: Path,
) -> Night:
    counted = plan.counted(journal.results)
    cases = case_rows(plan, counted)
    findings = finding_rows(counted, history, evidence.examples)
    rate = rate_of(WRONG, [session for row in cases if row.role == "silent" for session in row.sessions])
    id_ = journal.night
    night = Night(
        id_.suite, id_.suite_hash, plan.suite.title, "", 0, "", (), id_.version, id_.code, id_.utc, id_.first_seed,
        id_.target, id_.defect, ended.elapsed_s,
        made_s=round(sum(result.took_s for result in journal.results.values()), 3),
        runs=len(counted), requests=sum(result.requests for result in counted),
        missing=_missing(plan, journal) if ended.interrupted or ended.lost else 0,
        rate=rate, cases=cases, findings=findings, gates=(), comparison=None, pruned=evidence.pruned,
        digest=digest(counted), folder=str(folder),
    )  # fmt: skip
    comparison = None
    if baseline is not None:
        itself = msgspec.convert(night, PastNight, from_attributes=True)
        comparison = compare(
            side_of_night(baseline, baseline.utc),
            side_of_night(itself, night.utc),
            same_within=plan.suite.gates.same_within,
        )
    gates = gate_rows(plan.suite.gates, cases, findings, rate, comparison)
    missing = [f"{night.missing} runs are missing"] if night.missing else []
    word, why = verdict(cases, gates, missing, ended.lost)
    return msgspec.structs.replace(
        night, verdict=word, exit_code=word.exit_code, why=why, gates=gates, comparison=comparison,
        answer=comparison.answer if comparison else "",
    )  # fmt: skip


def _missing(plan: Plan, journal: Journal) -> int:
    """Return how many of the seeds that the cases ask for are neither made nor needless."""
    known = plan.known(journal.results)
    return sum(
        f"{case.label}.{role}.{plan.first_seed + number}" not in journal.results
        for case, role in plan.rows
        if (case.label, role) not in known
        for number in range(case.seeds)
    )
