"""Windows and what of them stands, as pure functions."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from repro.serve.kv.layout import Layout
from repro.serve.sched.keys import pair_keys
from repro.serve.sched.rows import DeviceRows
from repro.serve.sched.sampling import sample_stamps
from repro.serve.spec.draft import WRONG_STAMP_DRAFTS, draft_stamps
from repro.serve.spec.verify import standing_tokens, windows

token = st.integers(0, 2)  # few, so that drafts are often right
window = st.lists(st.tuples(token, token), min_size=1, max_size=5)  # (input, sampled) at each position


def stands(pairs: list[tuple[int, int]]) -> int:
    """Return how many sampled tokens of a window stand, the long way."""
    for place, (_, sampled) in enumerate(pairs):
        if place + 1 == len(pairs) or pairs[place + 1][0] != sampled:
            return place + 1
    raise AssertionError("a window has a token")


@given(st.lists(window, min_size=1, max_size=6))
def test_a_window_stands_up_to_the_first_draft_that_was_not_sampled(batch: list[list[tuple[int, int]]]) -> None:
    counts = np.array([len(pairs) for pairs in batch], np.int64)
    inputs, sampled = np.array([pair for pairs in batch for pair in pairs], np.int64).T
    layout = Layout(np.arange(len(batch), dtype=np.int64), counts)
    assert standing_tokens(layout, inputs, sampled).tolist() == [stands(pairs) for pairs in batch]


def test_a_window_is_cut_where_the_longest_answer_ends_and_never_empty() -> None:
    rows = DeviceRows(rows=4, context_tokens=32, page_tokens=4)
    rows.length[:] = 10
    rows.limit[:] = [20, 14, 12, 11]  # the last has been answered already
    layout = windows(rows, np.arange(4), drafts=3)
    assert layout.firsts.tolist() == [10] * 4
    assert layout.counts.tolist() == [4, 3, 1, 1]


def test_a_key_tells_a_token_by_its_successor() -> None:
    assert pair_keys(np.array([1, 2, 3]), 10).tolist() == [12, 23]
    assert len(set(pair_keys(np.array([5, 5, 6, 5, 7]), 154_880).tolist())) == 4


def test_a_share_of_the_stamps_drafts_is_wrong_and_which_depends_on_the_prefix_alone() -> None:
    prefixes = np.arange(8000, dtype=np.uint64)
    drafts, right = draft_stamps(prefixes, 96), sample_stamps(prefixes, 96).tokens
    assert abs((drafts != right).mean() - 1 / WRONG_STAMP_DRAFTS) < 0.02
    assert (draft_stamps(prefixes[::-1], 96)[::-1] == drafts).all()
