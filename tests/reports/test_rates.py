"""Rates and their intervals, against published values and an independent implementation."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t
from statsmodels.stats.proportion import proportion_confint

from reports.rates import (
    clopper_pearson,
    cluster_text,
    interval_text,
    korn_graubard,
    rate_of,
    rate_text,
    share_text,
)


@given(st.integers(1, 20_000).flatmap(lambda of: st.tuples(st.integers(0, of), st.just(of))))
def test_the_interval_is_the_exact_binomial_one(numbers: tuple[int, int]) -> None:
    count, of = numbers
    assert clopper_pearson(count, of) == pytest.approx(proportion_confint(count, of, method="beta"), abs=1e-9)


def test_nothing_in_ten_thousand_means_at_most_three_point_seven() -> None:
    low, high = clopper_pearson(0, 10_000)
    assert low == 0 and high * 10_000 == pytest.approx(3.69, abs=0.01)


def test_clusters_that_agree_within_themselves_widen_the_interval() -> None:
    alike = [(10, 10)] * 4 + [(0, 10)] * 16
    mixed = [(2, 10)] * 20
    exact = clopper_pearson(40, 200)
    wide, narrow = korn_graubard(alike), korn_graubard(mixed)
    assert wide[0] < exact[0] and wide[1] > exact[1]
    assert wide[1] - wide[0] > 2 * (exact[1] - exact[0])
    assert narrow[0] <= 0.2 <= narrow[1]


def test_the_effective_number_of_requests_follows_korn_and_graubard() -> None:
    sessions = [(3, 10), (0, 10), (5, 10), (1, 10), (0, 10), (2, 10)]
    share = 11 / 60
    variance = 6 / 5 * sum((hit - share * size) ** 2 for hit, size in sessions) / 60**2
    effective = share * (1 - share) / variance * float(t.ppf(0.025, 59) / t.ppf(0.025, 5)) ** 2
    assert effective < 20
    assert korn_graubard(sessions) == pytest.approx(clopper_pearson(share * effective, effective))


def test_one_session_bounds_nothing() -> None:
    assert korn_graubard([(5, 10)]) == (0.0, 1.0) == korn_graubard([])


@given(st.lists(st.integers(1, 30).flatmap(lambda of: st.tuples(st.integers(0, of), st.just(of))), max_size=20))
def test_both_intervals_hold_the_share(sessions: list[tuple[int, int]]) -> None:
    rate = rate_of("were hit", sessions)
    assert 0 <= rate.low <= rate.share <= rate.high <= 1
    assert rate.session_low - 1e-9 <= rate.share <= rate.session_high + 1e-9
    assert rate_text(rate) and isinstance(cluster_text(rate), str)


def test_rates_are_said_in_the_unit_that_reads_best() -> None:
    assert share_text(0.25) == "25%" and share_text(0.0004) == "4 per 10,000" and share_text(0) == "0%"
    assert interval_text(0, 0.00037) == "0 to 3.7 per 10,000"
    assert rate_text(rate_of("read wrong bytes", [(0, 10_000)])) == (
        "None of 10,000 requests read wrong bytes; with 95% confidence the rate is at most 3.69 per 10,000."
    )
    assert "no rate" in rate_text(rate_of("read wrong bytes", []))
