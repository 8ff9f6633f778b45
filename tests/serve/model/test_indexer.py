"""The best positions: the highest scores, ties by lowest position, ascending."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from repro.serve.model.indexer import best_positions


def by_sorting(scores: list[float], topk: int) -> list[int]:
    """Return the same by a plain sort: highest first, NaN highest of all, then lowest position."""
    ranked = sorted(range(len(scores)), key=lambda at: (-(math.inf if math.isnan(scores[at]) else scores[at]), at))
    return sorted(ranked[:topk])


SCORES = st.sampled_from([0.0, -0.0, 0.5, 1.0, 2.0, -1.0, -math.inf, math.nan])


@given(st.data(), st.integers(1, 3), st.integers(2, 24))
def test_best_positions_equal_a_plain_sort(data, rows, width):
    scores = data.draw(st.lists(st.lists(SCORES, min_size=width, max_size=width), min_size=rows, max_size=rows))
    topk = data.draw(st.integers(1, width - 1))
    found = best_positions(torch.tensor(scores), topk)
    assert found.tolist() == [by_sorting(row, topk) for row in scores]


def test_ties_at_the_cut_go_to_the_lowest_positions():
    scores = torch.tensor([[1.0, 0.0, 3.0, 0.0, 0.0, 2.0]])
    assert best_positions(scores, 4).tolist() == [[0, 1, 2, 5]]


@pytest.mark.parametrize("topk", [16, 256])
def test_random_scores_give_the_positions_of_torch_topk(topk):
    scores = torch.randn(40, 1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(best_positions(scores, topk), scores.topk(topk).indices.sort().values)
