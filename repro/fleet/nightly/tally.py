"""From the results that count to rows: each case and property, each cause that was found."""

import hashlib
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec

from reports.night.night import CaseRow, FindingRow, PastNight
from reports.rates import rate_of
from repro.fleet.nightly.compare import WRONG
from repro.fleet.nightly.job import JUDGED, JobResult, Role
from repro.fleet.nightly.plan import Plan
from repro.fleet.nightly.suite import Case


def case_rows(plan: Plan, counted: Sequence[JobResult]) -> tuple[CaseRow, ...]:
    """Return a row for each case and property, in the suite's order."""
    titles = {case.label: scenario.title for case, scenario in zip(plan.suite.cases, plan.suite.scenarios, strict=True)}
    known = plan.known({result.key: result for result in counted})
    return tuple(
        _row(case, role, titles[case.label], [each for each in counted if (each.case, each.role) == (case.label, role)],
             known.get((case.label, role)))
        for case, role in plan.rows
    )  # fmt: skip


def finding_rows(
    counted: Sequence[JobResult], history: Sequence[PastNight], examples: Mapping[str, str]
) -> tuple[FindingRow, ...]:
    """Return the causes found in silent cases, new ones first; `examples` names for each a run that stays whole."""
    before = Counter(finding.signature for night in history for finding in night.findings)
    silent = [result for result in counted if result.role == "silent"]
    signatures = sorted({signature for result in silent for signature in result.signatures})
    rows = []
    for signature in signatures:
        runs = [result for result in silent if signature in result.signatures]
        example = examples.get(signature, runs[0].run_dir)
        rows.append(
            FindingRow(
                signature,
                tuple(sorted({result.case for result in runs})),
                len(runs),
                sum(result.signatures[signature] for result in runs),
                new=not before[signature],
                nights=before[signature],
                example=example,
                report=f"{example}/report.html",
                replay=f"repro reproduce {shlex.quote(example)}",
            )
        )
    return tuple(sorted(rows, key=lambda row: (not row.new, -row.runs, row.signature)))


def digest(counted: Sequence[JobResult]) -> str:
    """Return the hash of all that counts: verdicts, figures, causes, fingerprints; no time, no path.

    Why a run died is left out: it names processes and paths.
    """
    total = hashlib.sha256()
    for result in counted:
        why = () if result.verdict == "died" else result.why
        counts = msgspec.structs.replace(result, at_s=0.0, took_s=0.0, run_dir="", why=why)
        total.update(msgspec.json.encode(counts))
    return total.hexdigest()


def _row(case: Case, role: Role, title: str, runs: Sequence[JobResult], known: tuple[int, str] | None) -> CaseRow:
    judged = [run for run in runs if run.verdict in JUDGED]
    sessions = tuple(session for run in judged for session in run.sessions)
    duration_s = sum(run.duration_s for run in judged)
    found = [number for number, run in enumerate(runs, start=1) if run.verdict == "anomaly"]
    met, words = (_silent if role == "silent" else _found if role == "found" else _measured)(case, runs)
    if known is not None:
        words += f"; stopped after {known[0]} runs: the share of sessions hit is {known[1]}"
    return CaseRow(
        case.label, role, title, case.seeds, len(runs), dict(sorted(Counter(run.verdict for run in runs).items())),
        tuple(f"seed {run.seed}: {'; '.join(run.why)}" for run in runs if run.verdict in ("died", "failed")),
        met, words,
        rate=rate_of(WRONG, sessions),
        runs_hit=sum(any(hit for hit, _ in run.sessions) for run in judged),
        sessions=sessions,
        found_after=tuple(run.first_requests for run in runs if run.first_requests is not None),
        schedules_to_find=found[0] if found else None,
        tokens_per_s=sum(run.tokens for run in judged) / duration_s if duration_s else None,
    )  # fmt: skip


def _silent(case: Case, runs: Sequence[JobResult]) -> tuple[bool | None, str]:
    """Return whether no run found anything; None where none ran, or some are undecided."""
    convicted = sum(run.verdict == "anomaly" for run in runs)
    if convicted:
        return False, f"{convicted} of {len(runs)} runs found something"
    if not runs:
        return None, "not run"
    clean, vacuous = (sum(run.verdict == word for run in runs) for word in ("clean", "vacuous"))
    words = f"{clean} of {len(runs)} runs silent" + (f", {vacuous} vacuous ({_reason(runs)})" if vacuous else "")
    if not clean or clean + vacuous < len(runs):  # how many may be vacuous is for the gate to say
        return None, f"{words}; the others do not tell"
    return True, words


def _reason(runs: Sequence[JobResult]) -> str:
    """Return why the first vacuous run was one."""
    return next("; ".join(run.why) for run in runs if run.verdict == "vacuous")


def _found(case: Case, runs: Sequence[JobResult]) -> tuple[bool | None, str]:
    """Return whether enough runs found the defect within the requests allowed."""
    wanted, most = case.runs_found_min or case.seeds, case.requests_to_find_max
    hits = [run for run in runs if run.verdict == "anomaly" and run.first_requests is not None]
    if most is not None:
        hits = [run for run in hits if run.first_requests is not None and run.first_requests <= most]
    within = f" within {most} requests" if most is not None else ""
    words = f"{len(hits)} of {len(runs)} runs found it{within}, {wanted} asked"
    if len(hits) >= wanted:
        return True, words
    open_runs = case.seeds - sum(run.verdict in JUDGED for run in runs)
    return (None if len(hits) + open_runs >= wanted else False), words


def _measured(case: Case, runs: Sequence[JobResult]) -> tuple[bool | None, str]:
    return True, f"{len(runs)} runs as reference"
