"""`repro mutate`: what a user sees of the examination."""

from collections.abc import Sequence
from typing import get_args

import msgspec
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from repro.base.errors import UsageError
from repro.base.verdict_word import VerdictWord
from repro.scenario.schema import Scenario
from repro.search.mutate.sites import KINDS
from repro.search.mutate.study import Examination, Outcome, Row, examine

OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


def run_mutate(
    workloads: Sequence[Scenario], seeds: Sequence[int], workers: int, json: bool, out: Console, errors: Console
) -> int:
    """Examine the stack and print what came of it; return the exit code. Raises UsageError for a defect."""
    for workload in workloads:
        if workload.defects:
            raise UsageError(
                f"{workload.name} has a defect: a mutant that is found there proves nothing; take a scenario without"
            )
    with Progress(console=errors, transient=True) as progress:
        task = progress.add_task("workloads as they are", total=None)

        def done(row: Row, number: int, total: int) -> None:
            progress.update(task, completed=number, total=total, description="mutants")
            progress.console.print(_line(row), markup=False, soft_wrap=True)

        examination = examine(workloads, seeds, workers=workers, done=done)
    if json:
        counts = {outcome: examination.count(outcome) for outcome in OUTCOMES}
        out.out(msgspec.json.encode(counts | msgspec.to_builtins(examination) | {"score": examination.score}).decode())
    else:
        _print(examination, out)
    return _exit_code(examination)


def _line(row: Row) -> str:
    return f"{row.outcome:10} {row.kind}: {row.name}" + (f"  ({row.by})" if row.by else "")


def _print(examination: Examination, out: Console) -> None:
    for complaint in examination.unclean:
        out.print(f"not clean with nothing taken away: {complaint}", markup=False, soft_wrap=True)
    if not examination.rows:
        return
    table = Table("taken away", "mutants", *OUTCOMES)
    for kind in KINDS:
        rows = [row for row in examination.rows if row.kind == kind]
        counts = [sum(row.outcome == outcome for row in rows) for outcome in OUTCOMES]
        table.add_row(kind, *map(str, (len(rows), *counts)))
    out.print(table)
    for row in examination.rows:
        if row.outcome != "caught":
            out.print(_line(row), markup=False, soft_wrap=True)
    out.print(f"{examination.score:.1%} of {len(examination.rows)} mutants are caught or redundant")


def _exit_code(examination: Examination) -> int:
    if examination.unclean:
        return VerdictWord.FAILED.exit_code
    if examination.cut:
        return VerdictWord.INCONCLUSIVE.exit_code
    return (VerdictWord.CLEAN if examination.score == 1.0 else VerdictWord.ANOMALY).exit_code
