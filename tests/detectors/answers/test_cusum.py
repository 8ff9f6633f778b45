"""The sum forgets what was good, and is wrong as seldom as its limit says."""

import numpy as np
import pytest

from detectors.answers.cusum import LIMIT_MAX, Cusum, average_run_length, limit_for

COIN = ((-1, 1), (0.6, 0.4))


def test_the_first_rise_alarms_at_limit_zero_after_as_many_throws_as_it_is_rare() -> None:
    assert average_run_length((-1, 1), (0.9, 0.1), 0) == pytest.approx(10)


def test_the_run_length_of_a_walk_is_the_one_that_paper_gives() -> None:
    # A walk from 0, held at 0, until it stands at 2: E0 = 1/p + E1, E1 = 1 + q E0.
    up, down = 0.4, 0.6
    assert average_run_length(*COIN, 1) == pytest.approx((1 / up + 1) / (1 - down))


def test_the_run_length_is_what_simulated_sums_show() -> None:
    scores, shares = (-3, -1, 2, 5), (0.35, 0.35, 0.2, 0.1)
    draw, lengths = np.random.default_rng(1), []
    for _ in range(400):
        cusum, length = Cusum(14), 1
        while not cusum.feed(int(draw.choice(scores, p=shares))):
            length += 1
        lengths.append(length)
    error = np.std(lengths) / np.sqrt(len(lengths))
    assert abs(np.mean(lengths) - average_run_length(scores, shares, 14)) < 4 * error


@pytest.mark.parametrize("run_length", [1.0, 30.0, 1e4, 1e7])
def test_the_limit_is_the_least_that_is_enough(run_length: float) -> None:
    limit = limit_for(*COIN, run_length)
    assert limit is not None and average_run_length(*COIN, limit) >= run_length
    assert limit == 0 or average_run_length(*COIN, limit - 1) < run_length


def test_a_sum_that_nothing_raises_has_no_limit_and_never_alarms() -> None:
    assert limit_for((-1, 0, 5), (0.5, 0.5, 0.0), 1e6) is None
    assert not any([Cusum(None).feed(10**6) for _ in range(3)])


def test_a_sum_that_drifts_up_is_refused() -> None:
    with pytest.raises(ValueError, match=f"no limit up to {LIMIT_MAX}"):
        limit_for((-1, 1), (0.4, 0.6), 1e7)


def test_since_is_where_the_rise_began() -> None:
    cusum = Cusum(9)
    assert [cusum.feed(score) for score in (-5, 3, -4, 6, 5)] == [False, False, False, False, True]
    assert (cusum.since, cusum.sum) == (3, 11)
