"""The batch's layout: where each token's own rows belong, and what it selects while its context is short."""

import torch

from repro.serve.model.context import Context, build_context
from tests.serve.model.builders import TINY, Cache, make_model, make_reference

PAGE_SIZE = 4
TABLE = torch.tensor([[3, 1, 7, 0], [2, 5, 4, 6], [8, 9, 10, 11]])


def layout(*parts: tuple[int, int, int]) -> Context:
    """Return the layout of parts (row, first position, count)."""
    rows = torch.tensor([row for row, _, count in parts for _ in range(count)])
    positions = torch.tensor([first + step for _, first, count in parts for step in range(count)])
    return build_context(TABLE, rows, positions, page_size=PAGE_SIZE)


def test_a_token_belongs_in_its_row_s_page():
    assert layout((0, 5, 2), (1, 0, 1)).token_slots.tolist() == [1 * 4 + 1, 1 * 4 + 2, 2 * 4]


def test_short_contexts_are_taken_whole_and_padded_with_the_own_slot(tmp_path):
    model = make_model(make_reference(TINY | {"index_topk": 6}), tmp_path)
    cache = Cache(model, 3, 16, page_size=PAGE_SIZE)  # its keys are NaN: who read one would take it first
    context = layout((1, 0, 3), (0, 5, 1))
    projected = model.project(0, model.embed(torch.arange(4)), context.positions)
    selected = model.select(0, projected, cache.index_keys[0], context)
    assert selected.counts.tolist() == [1, 2, 3, 6]
    assert selected.slots.tolist() == [
        [8] * 6,
        [8, 9, 9, 9, 9, 9],
        [8, 9, 10, 10, 10, 10],
        [12, 13, 14, 15, 4, 5],
    ]
