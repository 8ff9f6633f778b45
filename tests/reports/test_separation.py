"""Acceptance metrics against the truth: what counts as which, what is learned from whom, and how well it separates."""

import msgspec
import pytest

from reports.experiment.separation import Answer, answer_of, auroc, separate
from reports.experiment.steps import PartPlan, part_counts
from tests.builders import make_request, make_run, make_verdict
from tests.reports.steps import make_answers

DRAFTS = {"completion_tokens": 60, "spec_verify_ct": 20, "spec_draft_token_num": 60, "spec_accept_token_num": 40}


@pytest.mark.parametrize(
    ("changes", "truth"),
    [
        ({}, "clean"),
        ({"corrupted": True}, "unharmed"),
        ({"corrupted": True, "oracle": "diverged"}, "diverged"),
        ({"poisoned": True, "oracle": "diverged"}, "diverged"),
        ({"corrupted": True, "oracle": "diverged", "detectors": ["repetition"], "visible": True}, "looping"),
        ({"corrupted": True, "oracle": "diverged", "detectors": ["garbled"], "visible": True}, "garbled"),
        ({"corrupted": True, "oracle": "diverged", "detectors": ["repetition"], "model_own": True}, "diverged"),
        ({"detectors": ["repetition"], "model_own": True}, "clean"),
    ],
)
def test_the_truth_of_an_answer_is_what_was_read_and_what_the_clean_decode_says(
    changes: dict[str, object], truth: str
) -> None:
    answer = answer_of(make_request(**(DRAFTS | changes)), 3)
    assert answer is not None and answer.truth == truth
    assert (answer.length, answer.rate, answer.seed) == (3.0, 0.6667, 3)


def test_an_answer_that_was_cut_off_or_has_no_counts_is_left_out() -> None:
    assert answer_of(make_request(**(DRAFTS | {"finish": "abort"})), 0) is None
    assert answer_of(make_request(), 0) is None


def test_the_learned_rule_never_knows_the_seeds_that_it_judges() -> None:
    answers = make_answers((0, 1, 2, 3))
    separation = separate(answers, answers)
    assert separation.learned_from == 60 and len(separation.answers) == 140
    assert separation.counts == {"clean": 120, "unharmed": 0, "diverged": 20, "garbled": 0, "looping": 0}
    alone = separate(make_answers((0,)), make_answers((0,)))
    assert not alone.scores and alone.why.startswith("0 clean answers of other seeds are too few")


def test_what_only_one_half_calls_odd_is_judged_by_the_other() -> None:
    odd = [msgspec.structs.replace(each, length=1.15, rate=0.05) for each in make_answers((1, 3))]
    answers = [*make_answers((0, 2)), *odd]
    _, learned, _ = separate(answers, answers).scores
    assert learned.false_alarms == 1.0  # each half lies outside of what the other half teaches


def test_a_request_that_several_steps_ask_is_learned_from_once() -> None:
    answers = make_answers((0, 1))
    assert separate(answers, answers * 3).learned_from == 30


def test_a_rule_that_sees_nothing_has_half_the_area_and_one_that_sees_all_the_whole() -> None:
    fixed, learned, windows = separate(make_answers(), make_answers()).scores
    assert windows.auroc == 1.0 and windows.seen is None
    assert (fixed.auroc, fixed.recall, fixed.false_alarms) == (1.0, 1.0, 0.0)
    assert learned.auroc == 1.0 and fixed.low == fixed.high == 1.0
    same = [
        msgspec.structs.replace(each, length=2.5, rate=0.5) if each.truth == "diverged" else each
        for each in make_answers()
    ]
    same = [msgspec.structs.replace(each, length=2.5, rate=0.5) for each in same]
    assert [score.auroc for score in separate(same, same).scores] == [0.5, 0.5, 0.5]


def test_only_windows_see_an_answer_that_goes_up_and_down_around_the_average() -> None:
    def like(each: Answer) -> Answer:
        whole = msgspec.structs.replace(each, length=2.7, rate=0.57)
        if each.truth == "clean":
            return msgspec.structs.replace(whole, windows=(0.55 + each.rate / 50, 0.59 - each.rate / 50))
        return msgspec.structs.replace(whole, windows=(0.2, 0.94), truth="garbled")

    answers = [like(each) for each in make_answers()]
    fixed, learned, windows = separate(answers, answers).scores
    assert fixed.auroc == learned.auroc == 0.5
    assert windows.auroc == windows.seen == windows.recall == 1.0 and windows.false_alarms == 0.0


def test_ties_count_half() -> None:
    import numpy as np

    assert auroc(np.array([1.0, 2.0]), np.array([1.0, 0.0])) == 0.875


def test_a_part_counts_the_answers_that_were_not_cut_off(tmp_path) -> None:  # type: ignore[no-untyped-def]
    records = [
        make_request("s0-t1", corrupted=True, raced=True, oracle="diverged"),
        make_request("s0-t2"),
        make_request("s1-t1", poisoned=True),
        make_request("s1-t2", finish="abort", corrupted=True, raced=True),
    ]
    run = make_run(tmp_path, requests=records, verdict=make_verdict())
    part = part_counts(PartPlan(key="d", variant="", sensitivity=False), [run])
    assert (part.requests, part.finished, part.corrupted, part.diverged, part.raced) == (4, 3, 2, 1, 1)
    assert (part.rate.count, part.rate.of, part.rate.sessions, part.rate.sessions_hit) == (2, 3, 2, 2)
    assert part.runs_hit == 1 and part.verdicts == {"anomaly": 1}
