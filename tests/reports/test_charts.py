import re
from typing import get_args

from reports.charts import acceptance_chart
from reports.experiment.separation import Answer, Truth


def mark_of(truth: Truth) -> tuple[str, str]:
    """Return shape and colour of an answer's mark in the scatter."""
    svg = acceptance_chart([Answer("r", "s", 0, 1.5, 0.5, 100, truth)], width=300)
    found = re.findall(rf'kind: {truth}"[^>]* d="([^"]*)" stroke="([^"]*)"', svg)
    assert len(found) == 1, svg
    shape, colour = found[0]
    return shape, colour


def test_each_kind_of_answer_has_a_shape_of_its_own_and_bad_ones_are_accented() -> None:
    marks = {truth: mark_of(truth) for truth in get_args(Truth)}
    assert len({shape for shape, _ in marks.values()}) == len(marks) == 5
    accented = {truth for truth, (_, colour) in marks.items() if colour == "var(--accent)"}
    assert accented == {"diverged", "garbled", "looping"}
