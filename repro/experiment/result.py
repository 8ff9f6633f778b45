"""What an experiment came to, made from the folders of its runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reports.experiment import Result
from reports.separation import Answer, answer_of, separate
from reports.steps import PartCounts, StepCounts, part_counts
from repro.experiment.folder import ExperimentFolder
from repro.experiment.plan import Experiment, Part
from repro.experiment.runs import PartRuns
from repro.record.view import Run, open_run

WORDS = {0: "as expected", 1: "not as expected", 4: "failed", 5: "inconclusive"}


def result_of(experiment: Experiment, folder: ExperimentFolder, results: Sequence[PartRuns]) -> Result:
    """Add up the runs of all parts. Raises UsageError for a run folder that is gone."""
    steps = tuple(
        StepCounts(
            step.name, step.title, step.about, step.expect, _conditions(step.faults, step.control),
            tuple(_counts(runs) for runs in results if runs.part.step.name == step.name),
        )
        for step in experiment.steps
    )  # fmt: skip
    code, why = exit_code(steps)
    with_faults = [answer for runs in results if runs.part.step.faults for answer in _answers(runs)]
    clean = [answer for runs in results for answer in _answers(runs) if not runs.part.sensitivity]
    return Result(
        experiment.name, experiment.title, experiment.about.strip(), experiment.defects, code, WORDS[code], why,
        folder.plan.first_seed, steps, separate(with_faults, clean), sum(runs.missing for runs in results),
        str(folder.path), str(folder.report),
    )  # fmt: skip


def _answers(runs: PartRuns) -> list[Answer]:
    """Return the whole answers of a part's runs that have counts of drafts."""
    found = [(answer_of(record, run.meta.seed)) for run in _opened(runs) for record in run.requests]
    return [answer for answer in found if answer is not None]


def _opened(runs: PartRuns) -> list[Run]:
    return [open_run(Path(verdict.run_dir)) for _, verdict in sorted(runs.verdicts.items())]


def exit_code(steps: Sequence[StepCounts]) -> tuple[int, tuple[str, ...]]:
    """Return 4 for dead runs, 1 for a step that is not as expected, 5 for runs that are missing or say nothing, 0.

    With the sentences that led to it.
    """
    parts = [(step, part) for step in steps for part in step.parts]
    died = [f"step {step.name}: {error}" for step, part in parts for error in part.died]
    died += [f"step {step.name}: a run failed" for step, part in parts if part.verdicts.get("failed")]
    if died:
        return 4, tuple(died)
    missing = [f"step {step.name}: {part.missing} runs are missing" for step, part in parts if part.missing]
    unsure = [
        f"step {step.name}: {part.verdicts['inconclusive']} runs are inconclusive"
        for step, part in parts
        if part.verdicts.get("inconclusive")
    ]
    unmet = [
        f"step {step.name} is expected to be {step.expect}, and is: {step.told}"
        for step in steps
        if step.met is False and not _open(step)
    ]
    if unmet:
        return 1, (*unmet, *missing, *unsure)
    return (5, (*missing, *unsure)) if missing or unsure else (0, ())


def _open(step: StepCounts) -> bool:
    """Return whether the runs that are missing or inconclusive may still make the step what it should be."""
    word = {"silent": "clean", "found": "anomaly"}[step.expect]
    told = {each for part in step.parts for each in part.verdicts}
    return told <= {word, "inconclusive"} and ("inconclusive" in told or any(part.missing for part in step.parts))


def _conditions(faults: bool, control: bool) -> tuple[str, ...]:
    return ("faults on" if faults else "no faults", "guard in place" if control else "with the defect")


def _counts(runs: PartRuns) -> PartCounts:
    part = runs.part
    return part_counts(
        _opened(runs),
        key=part.key,
        variant=part.variant,
        sensitivity=part.sensitivity,
        died=tuple(runs.errors.values()),
        empty=tuple(runs.empty.values()),
        missing=runs.missing,
        differs=_differs(part),
        numerics=str(part.tables.get("target", {}).get("numerics", "tensors")),
    )


def _differs(part: Part) -> dict[str, object]:
    """Return what the step and the variant set beyond the common tables, flat."""
    variants = [each for each in (*part.step.variant, *part.step.sensitivity) if each.name == part.variant]
    flat = _flat(part.step.target | part.step.load)
    for variant in variants:
        flat |= _flat(variant.target | variant.load)
    return flat


def _flat(table: dict[str, Any]) -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in table.items():
        flat |= {f"{key}.{inner}": each for inner, each in value.items()} if isinstance(value, dict) else {key: value}
    return flat
