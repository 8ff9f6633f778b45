"""An experiment as text in a terminal: its steps side by side, and what separates the drafts' counts."""

from rich.console import Console
from rich.table import Table

from reports.experiment.page import Result, score_text
from reports.experiment.steps import PartCounts, StepCounts
from reports.rates import interval_text, share_text


def print_experiment(result: Result, console: Console) -> None:
    """Print what the steps came to, and the way to the report."""
    table = Table("step", "runs", "finished", "wrong bytes", "rate, simulated", "came to")
    for step in result.steps:
        for number, part in enumerate(step.main):
            table.add_row(*_row(step, part, with_name=number == 0))
    console.print(table)
    for step in result.steps:
        if step.sensitivity:
            console.print(_sensitivity(step))
    for reason in result.why:
        console.print(reason, markup=False)
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
