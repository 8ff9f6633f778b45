"""`repro run EXPERIMENT`: runs the steps, prints them side by side, and returns the exit code."""

import sys
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from reports.experiment.page import Result, render_experiment, score_text
from reports.experiment.steps import PartCounts, StepCounts
from reports.rates import interval_text, share_text
from repro.fleet.experiment.folder import ExperimentFolder
from repro.fleet.experiment.plan import Experiment, Part
from repro.fleet.experiment.result import result_of
from repro.fleet.experiment.runs import run_parts


class Command(msgspec.Struct, frozen=True):
    """What the command line asks for."""

    given: str  # the experiment's name or path
    root: Path
    first: int  # seed
    seeds: int | None  # at most, of each part
    workers: int
    resume: Path | None
    json: bool


def run_experiment(experiment: Experiment, command: Command, console: Console, errors: Console) -> int:
    """Run an experiment, write its result and its page, print it, and return the exit code."""
    first, seeds = command.first, command.seeds
    if command.resume is None:
        folder = ExperimentFolder.create(command.root, experiment, datetime.now(UTC), first=first, seeds=seeds)
    else:
        folder = ExperimentFolder.resume(command.resume, experiment, first=first, seeds=seeds)

    def done(part: Part, seed: int, word: str, before: bool) -> None:
        again = "  (of an earlier start)" if before else ""
        errors.print(f"{part.key}  seed {seed}  {word}{again}", markup=False, soft_wrap=True)

    result = result_of(experiment, folder, run_parts(experiment, folder, workers=command.workers, done=done))
    folder.write(folder.result.name, msgspec.json.format(msgspec.json.encode(result), indent=2))
    folder.write(folder.report.name, render_experiment(result).encode())
    if command.json:
        sys.stdout.write(msgspec.json.encode(result).decode() + "\n")
        sys.stdout.flush()
    else:
        _print(result, console)
    if result.missing:
        limit = f" --seeds {seeds}" if seeds else ""
        again = f"repro run {command.given} --seed {first}{limit} --resume {folder.path}"
        errors.print(f"{result.missing} runs are missing; `{again}` continues", markup=False, soft_wrap=True)
    return result.exit_code


def _print(result: Result, console: Console) -> None:
    table = Table("step", "runs", "finished", "wrong bytes", "rate, simulated", "came to")
    for step in result.steps:
        for number, part in enumerate(step.main):
            table.add_row(*_row(step, part, with_name=number == 0))
    console.print(table)
    for step in result.steps:
        if step.sensitivity:
            console.print(_sensitivity(step))
    for told in result.why:
        console.print(told, markup=False)
    for score in result.separation.scores:
        console.print(score_text(score), markup=False)
    console.print(f"report: {result.report}", markup=False, soft_wrap=True)


def _row(step: StepCounts, part: PartCounts, *, with_name: bool) -> tuple[str, ...]:
    name = f"{step.name}  {step.title}" if with_name else ""
    counts = (str(part.runs), f"{part.finished:,} of {part.requests:,}", f"{part.corrupted:,}")
    label = f"{name} ({part.variant})".strip() if part.variant else name
    return (label, *counts, rate_cell(part), step.told if with_name else "")


def rate_cell(part: PartCounts) -> str:
    """Return a part's rate with its interval over requests."""
    if not part.finished:
        return "-"
    return f"{share_text(part.rate.share)} ({interval_text(part.rate.low, part.rate.high)})"


def _sensitivity(step: StepCounts) -> Table:
    table = Table(f"step {step.name}, with", "finished", "wrong bytes", "rate, simulated")
    for part in step.sensitivity:
        table.add_row(part.variant, f"{part.finished:,} of {part.requests:,}", f"{part.corrupted:,}", rate_cell(part))
    return table
