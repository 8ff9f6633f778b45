"""Odd acceptance is found by each of the three rules, and clean answers as seldom as promised."""

import functools
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from scipy.stats import binomtest

from detectors.answers.acceptance import Acceptance, AcceptanceRules
from detectors.answers.acceptance_profile import (
    PERCENT,
    WINDOW_TOKENS,
    AcceptanceProfile,
    CleanAnswer,
    alarms,
    chart_of,
    learn,
    read_profile,
)
from detectors.base import Finding
from repro.base.errors import UsageError
from repro.base.json_file import write_struct
from repro.record.requests import SpecCounts
from tests.detectors.spec import NO_RULES, clean_answers, drawn, steady

SERIES_TOKENS = 10_000


def first_finding(rules: AcceptanceRules, series: Iterable[SpecCounts]) -> Finding | None:
    detector = Acceptance(rules)
    for counts in series:
        finding = detector.feed(counts)
        if finding is not None:
            return finding
    return detector.close()


@functools.cache
def profile_of(accepts: float, answers: int = 400) -> AcceptanceProfile:
    return learn("a model", clean_answers(answers, accepts), 128)


def learned_rules(accepts: float = 0.7, **changes: object) -> AcceptanceRules:
    rules = msgspec.structs.replace(NO_RULES, profile=profile_of(accepts), false_alarm_rate=0.02)
    return msgspec.structs.replace(rules, **changes)


def test_the_reports_rule_waits_for_its_tokens() -> None:
    poor = steady(200, 0)
    assert first_finding(AcceptanceRules(), poor[:127]) is None
    finding = first_finding(AcceptanceRules(), poor)
    assert finding is not None and finding.signature == "accept length below the fixed limit"
    assert (finding.layer, finding.evidence.completion_tokens, finding.evidence.limit) == ("acceptance", 128, 1.4)


def test_a_limit_itself_is_not_passed() -> None:
    at_length = SpecCounts(140, 100, 40, 300)
    at_rate = SpecCounts(388, 100, 288, 300)
    assert (at_length.accept_length, at_rate.accept_rate) == (1.4, 0.96)
    assert [first_finding(AcceptanceRules(), [counts]) for counts in (at_length, at_rate)] == [None, None]
    more = msgspec.structs.replace(at_rate, spec_accept_token_num=289)
    finding = first_finding(AcceptanceRules(), [more])
    assert finding is not None and finding.signature == "accept rate above the fixed limit"


def test_a_healthy_answer_is_silent_and_so_is_one_without_counts() -> None:
    assert first_finding(AcceptanceRules(), steady(400, 2)) is None
    assert first_finding(AcceptanceRules(), [SpecCounts(n, 0, 0, 0) for n in range(400)]) is None


def test_an_answer_is_convicted_once() -> None:
    detector = Acceptance(AcceptanceRules())
    found = [detector.feed(counts) for counts in steady(300, 0)]
    assert sum(finding is not None for finding in [*found, detector.close()]) == 1


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"length_min": 0.9}, "length_min = 0.9; must be at least 1 "),
        ({"rate_max": 0.0}, "rate_max = 0; must be at least 1e-06 and at most 1"),
        ({"rate_max": 1.01}, "rate_max = 1.01"),
        ({"rate_max": float("nan")}, "rate_max = nan"),
        ({"tokens_min": 0}, "tokens_min = 0; must be at least 1 "),
        ({"false_alarm_rate": 0.6}, "false_alarm_rate = 0.6"),
        ({"arl_tokens": 10.0}, "arl_tokens = 10; must be at least 1000"),
    ],
)
def test_a_limit_out_of_range_is_refused(changes: dict[str, float], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        msgspec.structs.replace(AcceptanceRules(), **changes).check()


def test_a_profile_vouches_for_no_less_than_it_has_seen() -> None:
    rules = msgspec.structs.replace(learned_rules(), false_alarm_rate=0.001)
    with pytest.raises(UsageError, match="400 clean answers vouch for 0.005 at the least; learn from more"):
        rules.check()
    learned_rules().check()


def test_the_whole_answer_is_compared_with_clean_ones_at_its_end() -> None:
    draw = np.random.default_rng(5)
    for accepts, signature in ((0.55, "accept length below that of clean"), (0.9, "accept rate above that of clean")):
        detector = Acceptance(learned_rules(arl_tokens=1e12))
        found = [detector.feed(counts) for counts in drawn(draw, 400, lambda seen, share=accepts: share)]  # type: ignore[misc]
        end = detector.close()
        assert not any(found) and end is not None and end.signature.startswith(signature)


def test_learned_limits_flag_no_more_clean_answers_than_they_may() -> None:
    rules = learned_rules(false_alarm_rate=0.1, arl_tokens=1e12)
    fresh = clean_answers(600, 0.7, seed=99)
    flagged = sum(first_finding(rules, [answer.counts]) is not None for answer in fresh)
    assert binomtest(flagged, len(fresh), 0.1, alternative="greater").pvalue > 1e-3
    assert flagged > 20


def test_a_late_change_that_the_average_misses_is_found_by_the_sums() -> None:
    begin = 8_000

    def series() -> Iterable[SpecCounts]:
        return drawn(np.random.default_rng(3), begin + 400, lambda seen: 0.7 if seen < begin else 0.05)

    whole = list(series())[-1]
    assert whole.accept_length > 1.4
    fixed = first_finding(AcceptanceRules(), series())
    quantiles = first_finding(learned_rules(), [whole])
    assert fixed is None and quantiles is None
    finding = first_finding(learned_rules(), series())
    assert finding is not None and finding.signature == "acceptance fell within the answer"
    at_tokens, since = finding.evidence.completion_tokens, finding.evidence.since_tokens
    assert isinstance(at_tokens, int) and begin < at_tokens <= begin + 5 * WINDOW_TOKENS
    assert isinstance(since, int) and abs(since - begin) <= 5 * WINDOW_TOKENS


def test_a_loop_that_begins_late_is_a_rise() -> None:
    series = drawn(np.random.default_rng(4), 5_000, lambda seen: 0.7 if seen < 4_000 else 1.0)
    finding = first_finding(learned_rules(), series)
    assert finding is not None and finding.signature == "acceptance rose within the answer"


def series_of_profile(profile: AcceptanceProfile, seed: int) -> Iterable[SpecCounts]:
    """Yield 10,000 tokens, the rate of each window drawn from the profile's clean windows."""
    shares = np.asarray(profile.windows) / sum(profile.windows)
    rates = np.random.default_rng(seed).choice(PERCENT, size=SERIES_TOKENS // WINDOW_TOKENS, p=shares)
    for number, accepted in enumerate(np.cumsum(rates).tolist(), 1):
        yield SpecCounts(number * WINDOW_TOKENS, 100 * number // 3, accepted, 100 * number)


@pytest.mark.parametrize("accepts", [0.7, 0.998])
def test_clean_series_of_the_profile_alarm_at_the_stated_rate(accepts: float) -> None:
    arl_tokens, seeds = 200_000.0, 1_000  # stated: one alarm in 200,000 tokens, so in at most 5 % of the series
    rules = learned_rules(accepts, arl_tokens=arl_tokens)
    alarms = sum(_alarms(rules, seed) for seed in range(seeds))
    assert binomtest(alarms, seeds, SERIES_TOKENS / arl_tokens, alternative="greater").pvalue > 1e-3
    assert alarms >= 5, "so silent that it says nothing about the rate"


def _alarms(rules: AcceptanceRules, seed: int) -> bool:
    detector = Acceptance(rules)
    return any([detector.feed(counts) for counts in series_of_profile(rules.profile, seed)])  # type: ignore[arg-type]


def test_clean_series_are_silent_at_the_default_rate() -> None:
    # One alarm in 10 million tokens: 200 series of 10,000 have one with a probability of 18 % at most.
    assert sum(_alarms(learned_rules(), seed) for seed in range(200)) <= 2


def test_a_model_whose_drafts_are_always_right_is_healthy_by_its_profile_only() -> None:
    perfect = steady(300, 3)
    assert first_finding(AcceptanceRules(), perfect) is not None
    rules = learned_rules(0.998)
    assert rules.chart is not None and rules.chart.rise_limit is None
    assert first_finding(rules, perfect) is None
    late = drawn(np.random.default_rng(2), 2_000, lambda seen: 0.998 if seen < 1_500 else 0.5)
    assert first_finding(rules, late) is not None


def test_counts_that_cannot_be_are_not_judged() -> None:
    assert (
        AcceptanceRules().unfit(SpecCounts(200, 100, 301, 300)) == "the server counts more accepted drafts than drafts"
    )
    assert first_finding(AcceptanceRules(), [SpecCounts(200, 180, 301, 300)]) is None


def test_a_profile_of_another_number_of_drafts_judges_nothing() -> None:
    other = steady(300, 0, drafts=5)
    assert first_finding(learned_rules(), other) is None
    assert "of 3 drafts a verify, the server has 5" in learned_rules().unfit(other[-1])


def test_chunks_of_many_verifies_make_the_same_windows_of_whole_chunks() -> None:
    series = steady(400, 2)
    detector = Acceptance(NO_RULES)
    for counts in series[::50]:  # 150 tokens each
        detector.feed(counts)
    assert detector.window_rates == pytest.approx([2 / 3] * 7)


def test_a_pause_of_drafting_is_no_window() -> None:
    detector = Acceptance(NO_RULES)
    drafting = steady(44, 2)
    for counts in (*drafting, msgspec.structs.replace(drafting[-1], completion_tokens=1_000)):
        detector.feed(counts)
    assert len(detector.window_rates) == 2


def test_a_profile_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_struct(tmp_path / "p.json", profile_of(0.7))
    assert read_profile(tmp_path / "p.json") == profile_of(0.7)
    assert (tmp_path / "p.json").stat().st_size < 8_000


@pytest.mark.parametrize("text", ["", "{}", '{"model": 3}', "\xff"])
def test_a_file_that_is_no_profile_is_told_with_what_makes_one(text: str, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(text, encoding="latin-1")
    with pytest.raises(UsageError, match=r"p.json: no acceptance profile .*`repro profile`"):
        read_profile(tmp_path / "p.json")
    with pytest.raises(UsageError, match="cannot be read"):
        read_profile(tmp_path / "gone.json")


def test_too_few_or_mixed_answers_teach_nothing() -> None:
    answers = clean_answers(60, 0.7, tokens=300)
    with pytest.raises(UsageError, match="49 clean answers of at least 128 tokens, with"):
        learn("m", answers[:49], 128)
    with pytest.raises(UsageError, match="0 clean answers of at least 4000 tokens"):
        learn("m", answers, 4_000)
    other = CleanAnswer(SpecCounts(300, 100, 200, 500), [0.4] * 4)
    with pytest.raises(UsageError, match=r"\[3, 5\] drafts a verify"):
        learn("m", [*answers, other], 128)


def test_a_quantile_is_an_order_statistic_that_one_more_answer_passes_that_seldom() -> None:
    answers = [CleanAnswer(SpecCounts(1_000 + n, 500, 1_000, 1_500), [0.5, 0.6]) for n in range(99)]
    profile = learn("m", answers, 128)
    assert (profile.length[0].share, profile.length[0].value) == (0.01, 2.0)
    assert profile.false_alarm_rate_min == 0.02
    assert (profile.length_below(0.05), profile.rate_above(0.05)) == (2.002, 2 / 3)


def test_the_sums_over_windows_alone_say_the_same() -> None:
    chart = chart_of(profile_of(0.7), 1e7)
    assert not alarms(chart, [0.5] * 50)
    assert alarms(chart, [0.5] * 50 + [0.0] * 4) and alarms(chart, [0.5] * 50 + [1.0] * 4)


def test_a_count_costs_microseconds() -> None:
    detector, series = Acceptance(learned_rules()), list(drawn(np.random.default_rng(1), 30_000, lambda seen: 0.7))
    started = time.process_time()
    for counts in series:
        detector.feed(counts)
    assert (time.process_time() - started) / len(series) < 50e-6
