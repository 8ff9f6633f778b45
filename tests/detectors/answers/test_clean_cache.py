"""The verdict over checked answers: the rate decides, chance is no conviction, and what is not told is unknown."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectors.answers.clean_cache import (
    ORACLES,
    Calibration,
    Oracle,
    clean_cache,
    judged,
    read_calibration,
)
from detectors.base import DetectorVerdict
from repro.base.errors import UsageError
from repro.base.json_file import write_struct
from repro.record.checks import Check

NOISE = tuple(index / 10_000 for index in range(999))  # the largest: 0.0998 nats
NOISY = Calibration("glm", "chat", NOISE, NOISE, NOISE)
LOG_2 = math.log(2)  # the surprisal of p = 1/2, whose log-odds are 0


def checked(name: str = "a", *, gap: float | None = 0.0, worst: float = 0.0, **more: Any) -> Check:
    """An answer of 26 tokens; the worst is so many nats behind the likeliest, and was as much surer under load."""
    deficits = (0.0,) * 5 + (worst,) + (0.0,) * 20
    return Check(
        request=name,
        tokens=len(deficits),
        first_difference=5 if gap else -1,
        gap=gap,
        deficits=deficits,
        surprisals=(LOG_2,) * len(deficits),
        surprisals_under_load=tuple(surprisal_of(log_odds) for log_odds in deficits),
        **more,
    )


def surprisal_of(log_odds: float) -> float:
    return math.log1p(math.exp(-log_odds))


def verdict(oracle: Oracle, *checks: Check, rate: float = 0.001, calibration: Calibration = NOISY) -> DetectorVerdict:
    return clean_cache(oracle, checks, calibration, rate, at_us=lambda request: 7.0)


@pytest.mark.parametrize("oracle", ORACLES)
def test_beyond_the_clean_scores_is_a_finding_and_within_is_none(oracle: Oracle) -> None:
    told = verdict(oracle, checked("a", gap=5.0, worst=5.0), checked("b", gap=0.09, worst=0.09))
    assert told.answer == "anomaly" and [finding.request for finding in told.findings] == ["a"]
    assert told.findings[0].at_us == 7.0 and told.checked == 2
    assert verdict(oracle, checked(gap=0.09, worst=0.09)).answer == "clean"


def test_the_rate_is_a_choice() -> None:
    doubtful = checked(gap=0.095)
    assert verdict("rerun", doubtful, rate=0.001).answer == "clean"
    assert verdict("rerun", doubtful, rate=0.05).answer == "anomaly"


@given(st.integers(1, 2000), st.floats(1e-4, 0.5))
def test_the_limit_is_passed_by_at_most_that_share_of_the_answers_that_made_it(answers: int, rate: float) -> None:
    calibration = Calibration("glm", "chat", tuple(float(index) for index in range(answers)), ())
    if rate * (answers + 1) < 1 - 1e-9:  # the limit forgives as much rounding
        with pytest.raises(UsageError, match="can vouch for"):
            calibration.limit("rerun", rate)
        return
    limit = calibration.limit("rerun", rate)
    beyond = sum(score > limit for score in calibration.rerun)
    assert (beyond + 1) / (answers + 1) <= rate + 1e-9


def test_no_more_than_chance_brings_is_no_conviction_unless_it_is_beyond_doubt() -> None:
    many = [checked(f"{index}") for index in range(999)]
    assert verdict("rerun", *many, checked("x", gap=0.2)).answer == "unknown"
    assert verdict("rerun", *many[:99], checked("x", gap=0.2)).answer == "anomaly"
    assert verdict("rerun", *many, checked("x", gap=4.0)).answer == "anomaly"


def test_many_small_deficits_side_by_side_count_together() -> None:
    spread = Check(request="a", tokens=80, deficits=(0.09,) + (0.0,) * 15 + (0.09,))
    together = Check(request="a", tokens=80, deficits=(0.0,) * 8 + (0.09,) * 8)
    assert judged("surprisal", spread).score == pytest.approx(0.09)
    assert judged("surprisal", together).score == pytest.approx(0.72)


def test_a_shift_of_log_odds_counts_the_same_however_likely_the_token_and_adds_up_over_the_answer() -> None:
    def moved(log_odds: float, tokens: int = 1) -> Check:
        return Check(
            request="a",
            tokens=tokens,
            deficits=(0.0,) * tokens,
            surprisals=(surprisal_of(log_odds),) * tokens,
            surprisals_under_load=(surprisal_of(log_odds - 0.2),) * tokens,
        )

    for log_odds in (-3.0, 0.0, 4.5):
        assert judged("confidence", moved(log_odds)).score == pytest.approx(0.2, abs=1e-6)
    assert judged("confidence", moved(0.0, tokens=16)).score == pytest.approx(0.8)
    assert judged("confidence", moved(0.0, tokens=500)).score == pytest.approx(0.2 * math.sqrt(32))
    assert judged("confidence", moved(30.0)).score == 0.0, "both are as good as certain"


def test_what_single_precision_cannot_tell_is_no_shift() -> None:
    sure, last_digit = surprisal_of(4.9), 1e-6
    check = Check(
        request="a", tokens=64, deficits=(0.0,) * 64, surprisals=(sure,) * 64,
        surprisals_under_load=(sure + last_digit, sure - last_digit) * 32,
    )  # fmt: skip
    assert judged("confidence", check).score == 0.0


@pytest.mark.parametrize(
    ("check", "oracle", "why"),
    [
        (Check(request="a", tokens=1, deficits=(0.0,), surprisals=(0.0,)), "confidence", "without the log-prob"),
        (checked(surprisal_why="no ids"), "confidence", "no ids"),
        (checked(gap=None), "rerun", "does not tell how likely"),
        (checked(rerun_why="no log-probabilities"), "rerun", "no log-probabilities"),
        (checked(surprisal_why="no ids"), "surprisal", "no ids"),
        (checked(bypassed=False), "rerun", "may have used the load's cache"),
    ],
)
def test_what_could_not_be_judged_is_unknown_and_a_conviction_stands(check: Check, oracle: Oracle, why: str) -> None:
    told = verdict(oracle, checked("b"), check)
    assert told.answer == "unknown" and why in told.why
    assert verdict(oracle, check, checked("c", gap=9.0, worst=9.0)).answer == "anomaly"


def test_nothing_checked_is_unknown_and_an_oracle_without_clean_scores_does_not_apply() -> None:
    assert verdict("rerun").answer == "unknown"
    told = verdict("surprisal", checked(), calibration=Calibration("glm", "chat", NOISE, ()))
    assert told.answer == "not_applicable" and "calibrate anew" in told.why


def test_a_calibration_is_the_same_after_it_was_written(tmp_path: Path) -> None:
    write_struct(tmp_path / "c.json", NOISY)
    assert read_calibration(tmp_path / "c.json") == NOISY
    with pytest.raises(UsageError, match="name another file"):
        write_struct(tmp_path / "none" / "c.json", NOISY)
