"""From logits to tokens: greedy or drawn, the same for a request whoever shares its batch."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from repro.base.rng import uniform
from repro.serve.sched.sampling import sample, sample_stamps
from repro.serve.types import SamplingParams

LOGITS = torch.log(torch.tensor([[0.5, 0.2, 0.2, 0.1], [0.1, 0.1, 0.2, 0.6]]))


def tokens_of(logits: torch.Tensor, *rows: tuple[SamplingParams, int]) -> list[int]:
    tokens: list[int] = sample(logits, list(rows)).tokens.tolist()
    return tokens


def test_temperature_zero_takes_the_likeliest_and_of_equal_ones_the_first() -> None:
    tied = torch.tensor([[0.0, 2.0, 2.0, 1.0]])
    assert tokens_of(tied, (SamplingParams(), 5)) == [1]


def test_log_probabilities_are_the_models_own_whatever_the_temperature() -> None:
    rows = [(SamplingParams(), 3), (SamplingParams(temperature=5.0, top_p=0.3, seed=4), 3)]
    sampled = sample(LOGITS, rows)
    expected = LOGITS.log_softmax(-1)[torch.arange(2), torch.from_numpy(sampled.tokens)]
    assert np.allclose(sampled.logprobs, expected.numpy())


def test_alternatives_come_only_where_asked_for_the_likeliest_first() -> None:
    sampled = sample(LOGITS, [(SamplingParams(top_logprobs=2), 3), (SamplingParams(), 3)])
    (first, second), none = sampled.top
    assert first[0] == 0 and second[0] in (1, 2) and none == ()
    assert np.isclose(first[1], np.log(0.5)) and np.isclose(second[1], np.log(0.2))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 500), st.integers(0, 6))
def test_a_draw_depends_on_seed_and_position_only(seed: int, position: int, mates: int) -> None:
    drawn = SamplingParams(temperature=0.8, top_p=0.9, seed=seed)
    alone = tokens_of(LOGITS[:1], (drawn, position))
    batch = torch.cat([LOGITS[1:]] * mates + [LOGITS[:1]])
    rows = [(SamplingParams(temperature=1.0, seed=mate), 7) for mate in range(mates)]
    assert tokens_of(batch, *rows, (drawn, position))[-1:] == alone


def test_draws_follow_the_distribution() -> None:
    drawn = SamplingParams(temperature=1.0, seed=1)
    counts = np.bincount(tokens_of(LOGITS[:1].repeat(4000, 1), *((drawn, place) for place in range(4000))))
    assert np.abs(counts / 4000 - [0.5, 0.2, 0.2, 0.1]).max() < 0.03


def test_a_low_temperature_sharpens_and_a_high_one_flattens() -> None:
    def share_of_best(temperature: float) -> float:
        drawn = SamplingParams(temperature=temperature, seed=2)
        chosen = tokens_of(LOGITS[:1].repeat(1000, 1), *((drawn, place) for place in range(1000)))
        return chosen.count(0) / 1000

    assert share_of_best(0.3) > 0.9 > share_of_best(1.0) > share_of_best(3.0)


def test_top_p_leaves_the_fewest_tokens_that_reach_it() -> None:
    def possible(top_p: float) -> set[int]:
        drawn = SamplingParams(temperature=1.0, top_p=top_p, seed=3)
        return set(tokens_of(LOGITS[:1].repeat(600, 1), *((drawn, place) for place in range(600))))

    assert possible(0.4) == {0} and possible(0.6) == {0, 1} and possible(0.85) == {0, 1, 2}
    assert possible(1e-9) == {0} and possible(1.0) == {0, 1, 2, 3}


def test_a_draw_just_below_one_is_the_last_token_and_never_outside() -> None:
    seed, place = max(((seed, 9) for seed in range(3000)), key=lambda at: uniform(at[0], "sample", at[1]))
    assert uniform(seed, "sample", place) > 0.999
    flat = torch.zeros(1, 5)
    assert tokens_of(flat, (SamplingParams(temperature=1.0, seed=seed), place)) == [4]


def test_logits_that_are_nan_still_give_a_token_and_say_so() -> None:
    broken = torch.full((1, 4), torch.nan)
    for params in (SamplingParams(), SamplingParams(temperature=1.0), SamplingParams(top_logprobs=2)):
        sampled = sample(broken, [(params, 3)])
        assert 0 <= sampled.tokens[0] < 4 and np.isnan(sampled.logprobs[0])


def test_stamps_give_tokens_of_the_vocabulary_by_prefix_alone() -> None:
    prefix = np.array([5, 9, 5], np.uint64)
    sampled = sample_stamps(prefix, 50)
    assert sampled.tokens[0] == sampled.tokens[2] != sampled.tokens[1]
    assert (sampled.tokens < 50).all() and len(sampled.top) == 3
