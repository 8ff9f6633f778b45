"""A profile is learned from clean runs, and judges what comes after."""

from pathlib import Path

import pytest

from detectors.answers.acceptance_profile import read_profile
from repro.base.errors import UsageError
from repro.record.requests import RequestRecord
from repro.run.answer_detectors import acceptance_rules
from repro.scenario.schema import AcceptanceSpec
from repro.tools.profile import learn_profile
from tests.builders import make_request, make_run, make_verdict
from tests.detectors.spec import clean_answers

CLEAN = make_verdict(verdict="clean")


def drafted_requests(number: int, accepts: float = 0.7) -> list[RequestRecord]:
    """Return requests as a run against a server that drafts leaves them."""
    return [
        make_request(
            f"s{n}-t1", oracle="", completion_tokens=answer.counts.completion_tokens,
            spec_verify_ct=answer.counts.spec_verify_ct, spec_accept_token_num=answer.counts.spec_accept_token_num,
            spec_draft_token_num=answer.counts.spec_draft_token_num, spec_window_rates=list(answer.window_rates),
        )
        for n, answer in enumerate(clean_answers(number, accepts))
    ]  # fmt: skip


def test_a_clean_run_teaches_and_its_suspects_do_not(tmp_path: Path) -> None:
    requests = drafted_requests(70)
    requests[0].detectors = ["repetition"]
    requests[1].finish = "abort"
    run = make_run(tmp_path, requests=requests, findings=(), verdict=CLEAN)
    learned = learn_profile([run.path], tmp_path / "p.json", model="glm", tokens_min=128)
    assert read_profile(tmp_path / "p.json") == learned.profile
    assert (learned.profile.model, learned.profile.answers, learned.profile.drafts) == ("glm", 68, 3)
    assert (learned.windows, learned.alarms) == (sum(len(r.spec_window_rates) for r in requests[2:]), 0)


def test_a_run_that_is_not_clean_teaches_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path, requests=drafted_requests(60))
    with pytest.raises(UsageError, match="learned from clean runs, this one is anomaly"):
        learn_profile([run.path], tmp_path / "p.json", model="", tokens_min=128)
    assert not (tmp_path / "p.json").exists()


@pytest.mark.parametrize(
    ("accepts", "length_min", "rate_max"), [(0.1, None, 0.96), (0.7, 1.4, 0.96), (0.998, 1.4, None)]
)
def test_fixed_limits_that_clean_answers_pass_are_dropped(
    accepts: float, length_min: float | None, rate_max: float | None, tmp_path: Path
) -> None:
    run = make_run(tmp_path, requests=drafted_requests(70, accepts), findings=(), verdict=CLEAN)
    path = str(tmp_path / "p.json")
    profile = learn_profile([run.path], Path(path), model="", tokens_min=128).profile
    rules = acceptance_rules(AcceptanceSpec(profile=path), None)
    assert (rules.length_min, rules.rate_max, rules.profile, rules.required) == (length_min, rate_max, profile, True)
    assert acceptance_rules(AcceptanceSpec(profile=path, rate_max=0.5), None).rate_max == 0.5


def test_quantiles_of_too_few_answers_judge_only_when_they_are_asked_to(tmp_path: Path) -> None:
    run = make_run(tmp_path, requests=drafted_requests(70), findings=(), verdict=CLEAN)
    path = str(tmp_path / "p.json")
    profile = learn_profile([run.path], Path(path), model="", tokens_min=128).profile
    assert profile.false_alarm_rate_min == 0.05
    assert acceptance_rules(AcceptanceSpec(profile=path), None).false_alarm_rate is None
    assert acceptance_rules(AcceptanceSpec(profile=path, false_alarm_rate=0.06), None).false_alarm_rate == 0.06
    with pytest.raises(UsageError, match="false_alarm_rate = 0.001: 70 clean answers vouch for 0.05"):
        acceptance_rules(AcceptanceSpec(profile=path, false_alarm_rate=0.001), None)


def test_a_checkpoint_may_bring_its_profile_and_passes_the_fixed_rate_without_one(tmp_path: Path) -> None:
    bundled = acceptance_rules(None, tmp_path)
    assert (bundled.length_min, bundled.rate_max, bundled.profile, bundled.required) == (1.4, None, None, False)
    server = acceptance_rules(None, None)
    assert (server.length_min, server.rate_max, server.tokens_min) == (1.4, 0.96, 128)
    run = make_run(tmp_path, requests=drafted_requests(70, 0.998), findings=(), verdict=CLEAN)
    learn_profile([run.path], tmp_path / "acceptance.json", model="", tokens_min=128)
    assert acceptance_rules(None, tmp_path).profile is not None
    assert acceptance_rules(None, None).profile is None
