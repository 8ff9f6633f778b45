"""The batch's layout: which tokens are taken whole, scored as a run, or scored as decode rows."""

import torch

from repro.serve.model.context import DECODE_GROUP, Context, build_context

PAGE_SIZE, TOPK = 4, 6
TABLE = torch.tensor([[3, 1, 7, 0], [2, 5, 4, 6], [8, 9, 10, 11]])


def layout(*parts: tuple[int, int, int]) -> Context:
    """Return the layout of parts (row, first position, count)."""
    rows = torch.tensor([row for row, _, count in parts for _ in range(count)])
    positions = torch.tensor([first + step for _, first, count in parts for step in range(count)])
    return build_context(TABLE, rows, positions, page_size=PAGE_SIZE, topk=TOPK)


def test_a_token_belongs_in_its_row_s_page():
    assert layout((0, 5, 2), (1, 0, 1)).token_slots.tolist() == [1 * 4 + 1, 1 * 4 + 2, 2 * 4]


def test_short_contexts_are_taken_whole_and_padded_with_the_own_slot():
    context = layout((1, 0, 3))
    assert context.counts.tolist() == [1, 2, 3]
    assert context.short_slots.tolist() == [[8] * 6, [8, 9, 9, 9, 9, 9], [8, 9, 10, 10, 10, 10]]
    assert not context.segments and not context.decode_groups


def test_a_prefill_is_scored_from_the_first_position_past_topk():
    context = layout((0, 3, 6))
    [segment] = context.segments
    assert context.short_tokens.tolist() == [0, 1, 2]
    assert (segment.first_token, segment.num_tokens, segment.first_position) == (3, 3, 6)
    assert segment.pages.tolist() == [3, 1, 7]
    assert not context.decode_groups


def test_adjacent_prefills_of_two_rows_are_two_segments():
    context = layout((0, 7, 2), (1, 9, 3), (2, 12, 1))
    assert [(s.first_token, s.num_tokens, s.first_position) for s in context.segments] == [
        (0, 2, 7),
        (2, 3, 9),
    ]
    assert [group.tokens.tolist() for group in context.decode_groups] == [[5]]


def test_lone_tokens_are_decode_rows_grouped_by_length():
    context = layout((0, 14, 1), (1, 7, 1), (2, 2, 1))
    [group] = context.decode_groups
    assert group.tokens.tolist() == [1, 0]
    assert [pages.tolist() for pages in group.pages] == [[2, 5], [3, 1, 7, 0]]
    assert group.future.sum(-1).tolist() == [8, 1]
    assert group.slots[1, :5].tolist() == [12, 13, 14, 15, 4]


def test_decode_groups_are_bounded():
    count = 2 * DECODE_GROUP + 3
    table = torch.arange(4 * count).view(count, 4)
    context = build_context(table, torch.arange(count), torch.full((count,), 9), page_size=PAGE_SIZE, topk=TOPK)
    assert [len(group.tokens) for group in context.decode_groups] == [DECODE_GROUP, DECODE_GROUP, 3]
