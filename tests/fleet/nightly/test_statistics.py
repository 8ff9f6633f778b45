"""Intervals cover as often as they say, tests err as seldom as they say: on synthetic data with a known truth."""

from functools import cache

import numpy as np
import pytest
from scipy.stats import binom, fisher_exact
from statsmodels.stats.proportion import proportion_confint

from reports.rates import clopper_pearson, korn_graubard
from repro.fleet.nightly.sequential import Sequential, runs_until_known
from repro.fleet.nightly.statistics import SIGNIFICANT, effect_interval, exact_test, power, share

REPETITIONS = 1000
# Of 1,000 repetitions at 95 %, so many below it are sampling error: three standard deviations.
SAMPLING_ERROR = 3 * (0.95 * 0.05 / REPETITIONS) ** 0.5
Sessions = list[tuple[int, int]]


def drawn(generator: np.random.Generator, rate: float, sessions: int, alike: float = 0.3) -> Sessions:
    """Draw sessions of 1 to 7 requests whose rates differ: `alike` is the correlation within one (beta-binomial)."""
    spread = (1 - alike) / alike
    rates = generator.beta(rate * spread, (1 - rate) * spread, sessions)
    sizes = generator.integers(1, 8, sessions)
    return [(int(hit), int(size)) for hit, size in zip(generator.binomial(sizes, rates), sizes, strict=True)]


def fixed_sessions(test: Sequential) -> int:
    """Return how many sessions a test of a fixed number needs that errs as seldom."""
    return next(
        number
        for number in range(1, 1000)
        for hits in range(number)
        if binom.sf(hits, number, test.rate_low) <= test.false_alarm_rate
        and binom.cdf(hits, number, test.rate_high) <= test.miss_rate
    )


def test_the_exact_interval_covers_at_its_level() -> None:
    generator = np.random.default_rng(1)
    for rate, units in ((0.002, 500), (0.05, 200), (0.5, 40)):
        hits = generator.binomial(units, rate, REPETITIONS)
        covered = [low <= rate <= high for low, high in (clopper_pearson(int(hit), units) for hit in hits)]
        assert np.mean(covered) >= 0.95 - SAMPLING_ERROR
    assert clopper_pearson(0, 10_000)[1] == pytest.approx(3.69e-4, rel=0.01)
    assert clopper_pearson(0, 0) == (0.0, 1.0)
    assert clopper_pearson(3, 40) == pytest.approx(proportion_confint(3, 40, method="beta"))


@pytest.mark.parametrize(("rate", "sessions"), [(0.02, 150), (0.1, 40), (0.4, 80)])
def test_the_interval_over_sessions_covers_where_requests_are_alike_and_the_exact_one_does_not(
    rate: float, sessions: int
) -> None:
    generator = np.random.default_rng(2)
    clustered = exact = 0
    for _ in range(REPETITIONS):
        sample = drawn(generator, rate, sessions)
        low, high = korn_graubard(sample)
        clustered += low <= rate <= high
        low, high = clopper_pearson(sum(hit for hit, _ in sample), sum(size for _, size in sample))
        exact += low <= rate <= high
    assert clustered / REPETITIONS >= 0.95 - SAMPLING_ERROR - 0.01
    assert exact / REPETITIONS < 0.9


@pytest.mark.parametrize(("before", "after"), [(0.1, 0.1), (0.1, 0.02), (0.3, 0.5)])
def test_the_interval_of_the_effect_covers_at_its_level(before: float, after: float) -> None:
    generator = np.random.default_rng(3)
    covered = 0
    for _ in range(REPETITIONS):
        low, high = effect_interval(drawn(generator, before, 80), drawn(generator, after, 60))
        covered += low <= after - before <= high
    assert covered / REPETITIONS >= 0.95 - SAMPLING_ERROR - 0.005


def test_the_exact_test_errs_no_more_often_than_it_says_and_sees_what_is_there() -> None:
    generator = np.random.default_rng(4)
    told = cache(lambda *hits: exact_test(*([(1, 1)] * hit + [(0, 1)] * (40 - hit) for hit in hits))[1])
    equal = [told(*map(int, generator.binomial(40, 0.1, 2))) for _ in range(REPETITIONS)]
    assert np.mean(np.array(equal) <= SIGNIFICANT) <= SIGNIFICANT + SAMPLING_ERROR
    different = exact_test([(1, 3)] * 9 + [(0, 3)] * 31, [(0, 3)] * 40)
    assert different[0] == "Boschloo" and different[1] < 0.01


def test_where_nothing_was_hit_no_test_says_anything() -> None:
    assert exact_test([(0, 3)] * 20, [(0, 3)] * 30) == ("Boschloo", 1.0)
    assert exact_test([(0, 1)] * 2000, [(0, 1)] * 2000)[0] == "Fisher"
    low, high = effect_interval([(0, 3)] * 20, [(0, 3)] * 20)
    assert low < -0.1 and high > 0.1 and share([]) == 0.0


def test_the_power_is_the_known_one_and_what_a_simulation_has() -> None:
    assert power(0.001, 0.0003, 10_000, 10_000) == pytest.approx(0.53, abs=0.005)
    generator = np.random.default_rng(5)
    seen = 0
    for hit_before, hit_after in zip(generator.binomial(60, 0.3, 1000), generator.binomial(60, 0.1, 1000), strict=True):
        table = np.array([[hit_before, 60 - hit_before], [hit_after, 60 - hit_after]])
        seen += fisher_exact(table, alternative="greater").pvalue <= SIGNIFICANT
    assert power(0.3, 0.1, 60, 60) == pytest.approx(seen / 1000, abs=0.05)


@pytest.mark.parametrize(("truth", "wrong"), [(0.02, "high"), (0.15, "low")])
def test_the_sequential_test_keeps_its_error_rates_and_stops_early(truth: float, wrong: str) -> None:
    test = Sequential(rate_low=0.02, rate_high=0.15, false_alarm_rate=0.05, miss_rate=0.05)
    generator = np.random.default_rng(6)
    known = [
        runs_until_known(test, ((int(hits), 8) for hits in generator.binomial(8, truth, 200)))
        for _ in range(REPETITIONS)
    ]
    decided = [each for each in known if each is not None]
    assert len(decided) == REPETITIONS
    assert sum(word == wrong for _, word in decided) / REPETITIONS <= 0.05 + SAMPLING_ERROR
    assert 8 * np.mean([runs for runs, _ in decided]) < fixed_sessions(test)


def test_the_sequential_test_says_nothing_before_it_knows() -> None:
    test = Sequential(rate_low=0.01, rate_high=0.1)
    assert runs_until_known(test, [(0, 8)]) is None
    assert runs_until_known(test, [(0, 8)] * 10) == (4, "low")
    assert runs_until_known(test, [(4, 8)] * 10) == (1, "high")
