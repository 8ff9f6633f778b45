"""Builders of what an experiment came to."""

from collections.abc import Sequence
from typing import Any

from reports.experiment.page import Result
from reports.experiment.separation import Answer, separate
from reports.experiment.steps import PartCounts, StepCounts
from reports.rates import rate_of

FAULTS, ALONE, FIXED = ("faults on", "with the defect"), ("no faults", "with the defect"), ("faults on", "guard")


def make_part(key: str, hit: int = 0, of: int = 40, **changes: Any) -> PartCounts:
    """Return two runs of a part, `hit` of `of` finished requests corrupted."""
    fields: dict[str, Any] = {
        "variant": "",
        "sensitivity": False,
        "runs": 2,
        "verdicts": {"anomaly" if hit else "clean": 2},
        "died": (),
        "empty": (),
        "missing": 0,
        "requests": of + 10,
        "finished": of,
        "raced": hit,
        "corrupted": hit,
        "diverged": hit // 2,
        "visible": hit // 4,
        "runs_hit": min(hit, 2),
        "rate": rate_of("read wrong bytes", [(hit // 2, of // 2), (hit - hit // 2, of - of // 2)]),
        "differs": {},
        "numerics": "tensors",
    }
    return PartCounts(key=key, **(fields | changes))


def make_step(name: str, expect: str, *parts: PartCounts, **changes: Any) -> StepCounts:
    """Return a step with these parts."""
    fields: dict[str, Any] = {
        "title": f"Title of {name}",
        "about": f"About {name}.",
        "conditions": ALONE,
        "differs": {},
    }
    return StepCounts(name=name, expect=expect, parts=parts, **(fields | changes))


def five_steps() -> tuple[StepCounts, ...]:
    """Return steps as the report tells them."""
    stamps: dict[str, Any] = {"numerics": "stamps"}
    lifo = make_part("c-lifo", 3, 4000, variant="lifo", **stamps)
    sorted_ = make_part("c-deferred-sorted", 2, 4000, variant="deferred_sorted", **stamps)
    timeout = make_part("c-timeout", 0, 500, variant="timeout", sensitivity=True, **stamps)
    return (
        make_step("a", "silent", make_part("a", 0, 12)),
        make_step("b", "silent", make_part("b")),
        make_step("c", "rate", lifo, sorted_, timeout),
        make_step("d", "found", make_part("d", 12), conditions=FAULTS),
        make_step("e", "silent", make_part("e"), conditions=FIXED),
    )


def make_answers(seeds: Sequence[int] = (0, 1)) -> list[Answer]:
    """Return thirty clean answers and five diverged ones of each seed, of a low accept length, in ten sessions."""
    answers = []
    for seed in seeds:
        for number in range(35):
            diverged = number >= 30
            rate = 0.05 if diverged else 0.5 + number / 100
            session, truth = f"s-{seed}-{number % 10}", "diverged" if diverged else "clean"
            answers.append(Answer(f"{session}:{number}", session, seed, 1 + 3 * rate, rate, 60, truth))  # type: ignore[arg-type]
    return answers


def make_result(steps: tuple[StepCounts, ...] | None = None, **changes: Any) -> Result:
    """Return the result of an experiment whose steps came to what was expected."""
    answers = make_answers()
    fields: dict[str, Any] = {
        "experiment": "pd_scaling_pain",
        "title": "The experiment",
        "about": "Its story.",
        "defects": ("pd_reuse_before_drain",),
        "exit_code": 0,
        "verdict": "as expected",
        "why": (),
        "first_seed": 0,
        "separation": separate(answers, answers),
        "missing": 0,
        "folder": "runs/pd_scaling_pain/20261123T101500Z-0",
        "report": "runs/pd_scaling_pain/20261123T101500Z-0/report.html",
    }
    return Result(steps=five_steps() if steps is None else steps, **(fields | changes))
