"""The page of an experiment: the steps side by side, the scatter with the rule's lines, and nothing active in it."""

import pytest

from reports.experiment.page import render_experiment
from reports.experiment.steps import StepCounts
from repro.fleet.experiment.result import verdict_of_steps
from tests.reports.steps import five_steps, make_part, make_result, make_step
from tests.reports.test_html import HOSTILE, assert_inert


def test_the_five_steps_stand_side_by_side_with_their_rates() -> None:
    page = assert_inert(render_experiment(make_result()))
    for name in "abcde":
        assert f"{name} Title of {name}" in page.text and f"About {name}." in page.text
    for told in ("silent", "measured", "found", "lifo", "deferred_sorted", "30%", "7.5 per 10,000", "5 per 10,000"):
        assert told in page.text
    assert "All rates are simulated" in page.text
    assert "Step c: how much the assumptions matter" in page.text and "0 to 73.5 per 10,000" in page.text


def test_the_scatter_has_the_lines_of_the_fixed_rule_and_both_scores() -> None:
    source = render_experiment(make_result())
    page = assert_inert(source)
    assert source.count("stroke-dasharray") >= 4  # two limits, wide and narrow
    assert "The fixed rule: AUROC 1.00" in page.text and "The learned rule: AUROC 1.00" in page.text
    assert "60 clean" in page.text and "10 diverged" in page.text


def test_without_drafts_the_page_says_so() -> None:
    from reports.experiment.separation import separate

    page = assert_inert(render_experiment(make_result(separation=separate([], []))))
    assert "No finished answer has counts of drafts." in page.text and "There is no score" in page.text


def test_a_hostile_title_is_text() -> None:
    step = make_step(HOSTILE, "found", make_part("d", 3, variant=HOSTILE), title=HOSTILE, about=HOSTILE)
    hostile = make_result((step,), title=HOSTILE, about=HOSTILE, why=(HOSTILE,), folder=HOSTILE, experiment=HOSTILE)
    assert "{{ 7*7 }}" in assert_inert(render_experiment(hostile)).text


def changed(name: str, **changes: object) -> list[StepCounts]:
    """Return the five steps with one part changed."""
    return [
        make_step(name, step.expect, make_part(name, **changes)) if step.name == name else step  # type: ignore[arg-type]
        for step in five_steps()
    ]


@pytest.mark.parametrize(
    ("steps", "code"),
    [
        (list(five_steps()), 0),
        (changed("e", hit=1), 1),
        (changed("b", verdicts={"vacuous": 2}), 1),
        (changed("d", hit=0, verdicts={"anomaly": 2}), 1),  # convicted, but no request was hit
        (changed("d", hit=0), 1),
        (changed("a", runs=0, verdicts={}, empty=("nothing to ask",)), 1),
        (changed("b", verdicts={"clean": 1, "inconclusive": 1}), 5),
        (changed("b", runs=1, verdicts={"clean": 1}, missing=1), 5),
        (changed("b", runs=1, verdicts={"anomaly": 1}, missing=1), 1),
        (changed("c", runs=1, missing=1), 5),
        (changed("c", died=("exit 4: the disk is full",)), 4),
        (changed("e", hit=1, verdicts={"failed": 1, "anomaly": 1}), 4),
    ],
)
def test_the_exit_code_is_that_of_the_worst_step(steps: list[StepCounts], code: int) -> None:
    found, why = verdict_of_steps(steps)
    assert found.exit_code == code and bool(why) == bool(code)
