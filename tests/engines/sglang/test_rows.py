"""Rows tell whose they are: right, of somebody else, torn, or stemming from a bad read."""

import numpy as np
import pytest

from repro.base.probe import Component
from repro.engines.sglang.classes.rows import WIDTHS, compare, rows_of
from repro.serve.kv.stamps import prefix_words

PREFIX = prefix_words(np.arange(10))
OTHER = prefix_words(np.arange(100, 110))


@pytest.mark.parametrize("component", ["latent", "index"])
def test_rows_of_a_prefix_are_right_for_it_alone(component: Component) -> None:
    rows = rows_of(PREFIX, component, 2)
    assert rows.shape == (10, WIDTHS[component])
    assert not compare(rows, PREFIX, component, 2, 0).wrong.any()
    assert compare(rows, OTHER, component, 2, 3).wrong.all()
    assert compare(rows, PREFIX, component, 3, 3).wrong.all()  # of another layer
    assert compare(np.zeros_like(rows), PREFIX, component, 2, 3).wrong.all()  # never written


def test_nearly_every_byte_of_a_foreign_row_is_wrong() -> None:
    assert (rows_of(PREFIX, "latent", 2) != rows_of(OTHER, "latent", 2)).mean() > 0.99


def test_a_row_that_stems_from_a_bad_read_names_it_and_a_torn_one_is_foreign() -> None:
    rows = rows_of(PREFIX, "index", 1)
    rows[4:] = rows_of(PREFIX[4:], "index", 1, origin=2)
    rows[7, -1] ^= 1
    found = compare(rows, PREFIX, "index", 1, 5)
    assert found.wrong.tolist() == [False] * 7 + [True] + [False] * 2
    assert found.origin.tolist() == [0] * 4 + [2] * 3 + [0] + [2] * 2
