"""An experiment from its steps to its result, which is made from the folders of its runs."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from reports.experiment.page import Result, render_experiment
from reports.experiment.separation import Answer, answer_of, separate
from reports.experiment.steps import PartCounts, PartPlan, StepCounts, part_counts
from repro.base.verdict_word import VerdictWord
from repro.fleet.experiment.folder import ExperimentFolder
from repro.fleet.experiment.plan import Experiment, Part, Step
from repro.fleet.experiment.runs import PartRuns, run_parts
from repro.fleet.verdict import verdict_of
from repro.record.view import Run, open_run

WORDS = {VerdictWord.CLEAN: "as expected", VerdictWord.ANOMALY: "not as expected"}  # other words are used unchanged


class ExperimentOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Where an experiment writes, and how much of it is run."""

    given: str  # the experiment's name or path, as the user gave it
    root: Path
    first: int = 0  # seed
    seeds: int | None = None  # each part takes at most so many
    workers: int = 2
    resume: Path | None = None  # the folder of one that was stopped


def run_experiment(experiment: Experiment, options: ExperimentOptions, say: Callable[[str], None]) -> Result:
    """Run an experiment, or go on with one, write its result and its page, and return the result.

    `say` hears a line for each run that has ended.
    """
    first, seeds = options.first, options.seeds
    if options.resume is None:
        folder = ExperimentFolder.create(options.root, experiment, datetime.now(UTC), first=first, seeds=seeds)
    else:
        folder = ExperimentFolder.resume(options.resume, experiment, first=first, seeds=seeds)

    def done(part: Part, seed: int, word: str, before: bool) -> None:
        again = "  (of an earlier start)" if before else ""
        say(f"{part.key}  seed {seed}  {word}{again}")

    result = result_of(experiment, folder, run_parts(experiment, folder, workers=options.workers, done=done))
    folder.write(folder.result.name, msgspec.json.format(msgspec.json.encode(result), indent=2))
    folder.write(folder.report.name, render_experiment(result).encode())
    if result.missing:
        limit = f" --seeds {seeds}" if seeds else ""
        again = f"repro run {options.given} --seed {first}{limit} --resume {folder.path}"
        say(f"{result.missing} runs are missing; `{again}` continues")
    return result


def result_of(experiment: Experiment, folder: ExperimentFolder, results: Sequence[PartRuns]) -> Result:
    """Add up the runs of all parts. Raises UsageError for a run folder that is gone."""
    opened = [(each, [open_run(Path(verdict.run_dir)) for verdict in each.verdicts.values()]) for each in results]
    counts = [_counts(each, runs) for each, runs in opened]
    steps = tuple(
        StepCounts(
            step.name, step.title, step.about.strip(), step.expect, _conditions(step), _differs(step.target, step.load),
            tuple(part for each, part in zip(results, counts, strict=True) if each.part.step.name == step.name),
        )
        for step in experiment.steps
    )  # fmt: skip
    word, why = verdict_of_steps(steps)
    with_faults = [answer for each, runs in opened if each.part.step.faults for answer in _answers(runs)]
    all_answers = [answer for _, runs in opened for answer in _answers(runs)]
    return Result(
        experiment.name, experiment.title, experiment.about.strip(), experiment.defects, word.exit_code,
        WORDS.get(word, word), why, folder.plan.first_seed, steps, separate(with_faults, all_answers),
        sum(each.missing for each in results),
        str(folder.path), str(folder.report),
    )  # fmt: skip


def _answers(runs: Sequence[Run]) -> list[Answer]:
    """Return the whole answers of runs that have counts of drafts."""
    found = [answer_of(record, run.meta.seed) for run in runs for record in run.requests]
    return [answer for answer in found if answer is not None]


def verdict_of_steps(steps: Sequence[StepCounts]) -> tuple[VerdictWord, tuple[str, ...]]:
    """Return the verdict's word and the sentences that led to it.

    Failed for dead runs, anomaly for a step that is not as expected, inconclusive where runs are missing or unsure.
    """
    parts = [(step, part) for step in steps for part in step.parts]
    died = [f"step {step.name}: {error}" for step, part in parts for error in part.died]
    died += [f"step {step.name}: a run failed" for step, part in parts if part.verdicts.get("failed")]
    if died:
        return verdict_of({VerdictWord.FAILED: died})
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
    return verdict_of({VerdictWord.ANOMALY: unmet, VerdictWord.INCONCLUSIVE: [*missing, *unsure]})


def _open(step: StepCounts) -> bool:
    """Return whether the runs that are missing or inconclusive may still make the step what it should be."""
    word = {"silent": "clean", "found": "anomaly"}[step.expect]
    words = {each for part in step.parts for each in part.verdicts}
    return words <= {word, "inconclusive"} and ("inconclusive" in words or any(part.missing for part in step.parts))


def _conditions(step: Step) -> tuple[str, ...]:
    return ("faults on" if step.faults else "no faults", "guard in place" if step.control else "with the defect")


def _counts(runs: PartRuns, opened: Sequence[Run]) -> PartCounts:
    part = runs.part
    variants = [each for each in (*part.step.variant, *part.step.sensitivity) if each.name == part.variant]
    plan = PartPlan(
        key=part.key,
        variant=part.variant,
        sensitivity=part.sensitivity,
        died=tuple(runs.errors.values()),
        empty=tuple(runs.empty.values()),
        missing=runs.missing,
        differs={key: value for each in variants for key, value in _differs(each.target, each.load).items()},
        numerics=str(part.tables.get("target", {}).get("numerics", "tensors")),
    )
    return part_counts(plan, opened)


def _differs(target: dict[str, Any], load: dict[str, Any]) -> dict[str, object]:
    """Return what overrides set, flat."""
    flat: dict[str, object] = {}
    for key, value in (target | load).items():
        flat |= {f"{key}.{inner}": each for inner, each in value.items()} if isinstance(value, dict) else {key: value}
    return flat
