"""The counts of one answer's speculation."""

from hypothesis import given
from hypothesis import strategies as st

from repro.serve.sched.acceptance import WINDOW_TOKENS, Acceptance

steps = st.lists(st.integers(1, 4), max_size=200)  # tokens of each verify step, with three drafts


@given(steps)
def test_each_verify_step_gives_its_accepted_drafts_and_one_token_more(tokens: list[int]) -> None:
    acceptance = Acceptance(3)
    for count in tokens:
        acceptance.add(count)
    counts = acceptance.counts(1 + sum(tokens))
    assert (counts.verify_steps, counts.drafts) == (len(tokens), 3 * len(tokens))
    assert counts.completion_tokens == 1 + counts.verify_steps + counts.accepted_drafts
    assert len(counts.histogram) == 4
    assert (counts.accept_length is None) == (counts.accept_rate is None) == (not tokens)


def test_a_window_tells_a_late_fall_that_the_average_hides() -> None:
    acceptance = Acceptance(3)
    for tokens in [4] * 48 + [1] * WINDOW_TOKENS:
        acceptance.add(tokens)
    counts = acceptance.counts(257)
    assert counts.windows == (4.0, 4.0, 4.0, 1.0)
    assert counts.accept_length is not None and counts.accept_length > 2


def test_a_window_that_is_not_whole_yet_is_not_told() -> None:
    acceptance = Acceptance(1)
    acceptance.add(2)
    assert acceptance.counts(3).windows == ()
