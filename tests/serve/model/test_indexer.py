"""The best positions: the highest scores, ties by lowest position, ascending."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from repro.serve.model.kernels.select import best
from tests.serve.model.builders import best_positions


def best_of(scores: list[float] | np.ndarray, topk: int) -> list[int]:
    """Return the kernel's choice."""
    row = np.array(scores, np.float32)
    positions = np.empty(len(row) + 1, np.int64)
    best(row, topk, np.empty(len(row), np.uint32), np.empty((1 << 11) + 1, np.int32), positions)
    return positions[:topk].tolist()


def by_sorting(scores: list[float], topk: int) -> list[int]:
    """Return the same by a plain sort: highest first, NaN highest of all, then lowest position."""
    ranked = sorted(range(len(scores)), key=lambda at: (-(math.inf if math.isnan(scores[at]) else scores[at]), at))
    return sorted(ranked[:topk])


SCORES = st.sampled_from([0.0, -0.0, 0.5, 1.0, 2.0, -1.0, -math.inf, math.inf, math.nan]) | st.floats(width=32)


@settings(deadline=None)  # the first call compiles
@given(st.data(), st.integers(2, 24))
def test_best_positions_equal_a_plain_sort(data, width):
    scores = data.draw(st.lists(SCORES, min_size=width, max_size=width))
    topk = data.draw(st.integers(1, width - 1))
    assert best_of(scores, topk) == by_sorting(scores, topk)


def test_ties_at_the_cut_go_to_the_lowest_positions():
    assert best_of([1.0, 0.0, 3.0, 0.0, 0.0, 2.0], 4) == [0, 1, 2, 5]


@pytest.mark.parametrize("topk", [16, 256])
def test_random_scores_give_the_positions_of_a_stable_sort(topk):
    scores = torch.randn(40, 1000, generator=torch.Generator().manual_seed(0))
    assert [best_of(row, topk) for row in scores.numpy()] == best_positions(scores, topk).tolist()
