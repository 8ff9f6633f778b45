"""Who convicts: an answer that looks wrong undisturbed, too, is the model's own and convicts nobody."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from detectors.answers.acceptance import AcceptanceRules
from detectors.answers.acceptance_profile import learn
from detectors.answers.leak import Nonces
from detectors.base import DetectorVerdict
from repro.load.again import AskedAgain
from repro.record.requests import RequestRecord, SpecCounts
from repro.run.answer_detectors import AnswerDetectors
from repro.run.judge.asked_again import judge_asked_again
from repro.run.judge.marks import event_verdicts
from repro.run.limits import LimitWatch
from repro.run.recorder import Recorder
from tests.builders import make_folder, sent_request, text_finding
from tests.detectors.spec import clean_answers, steady

LOOP = "over and " * 60
FINE = "def read(path):\n    return path.read_text()\n"


def judged(root: Path, again: AskedAgain, text: str = LOOP) -> tuple[RequestRecord, dict[str, DetectorVerdict]]:
    """Return a suspect of a server at a URL, and the detectors' answers, given what it said again."""
    recorder = Recorder(make_folder(root), LimitWatch(1e9, 10**9, lambda: 0.0), AnswerDetectors(None))
    recorder.text_detectors("s:0", "say")
    recorder.on_finding("s:0", text_finding("repetition"))
    recorder.on_request(sent_request("s:0", text=text))
    verdicts = [*event_verdicts(recorder), *judge_asked_again(recorder, again)]
    recorder.folder.close("finished")
    (record,) = recorder.records
    assert record.detectors == ["repetition"]
    return record, {verdict.detector: verdict for verdict in verdicts}


def test_wrong_alone_on_a_dropped_cache_is_the_models_own(tmp_path: Path) -> None:
    for again in (LOOP, LOOP + "again"):
        record, verdicts = judged(tmp_path, AskedAgain({"s:0": again}, flushed=True))
        assert record.model_own and not record.visible and verdicts["repetition"].answer == "clean"


@pytest.mark.parametrize("flushed", [True, False])
def test_wrong_under_load_only_convicts(tmp_path: Path, flushed: bool) -> None:
    record, verdicts = judged(tmp_path, AskedAgain({"s:0": FINE}, flushed=flushed))
    assert (record.visible, record.model_own, record.oracle, record.clean_text) == (True, False, "other", FINE)
    assert verdicts["repetition"].answer == "anomaly" and len(verdicts["repetition"].findings) == 1


def test_wrong_again_on_a_cache_that_may_be_corrupted_is_unknown(tmp_path: Path) -> None:
    record, verdicts = judged(tmp_path, AskedAgain({"s:0": LOOP}, flushed=False))
    assert not record.visible and not record.model_own
    assert verdicts["repetition"].answer == "unknown" and "did not drop its cache" in verdicts["repetition"].why


def test_a_suspect_that_could_not_be_asked_again_is_unknown(tmp_path: Path) -> None:
    record, verdicts = judged(tmp_path, AskedAgain({}, flushed=True))
    assert verdicts["repetition"].answer == "unknown" and "could not be asked" in verdicts["repetition"].why
    assert verdicts["garbled"].answer == "clean" and not record.visible


def test_what_a_url_cannot_tell_is_not_applicable(tmp_path: Path) -> None:
    _, verdicts = judged(tmp_path, AskedAgain())
    blind = ("ordering", "ownership", "canary", "divergence", "acceptance", "cross_prompt_leak")
    assert {verdicts[name].answer for name in blind} == {"not_applicable"}
    assert all(verdicts[name].why for name in blind)


POOR, GOOD = steady(200, 0), steady(100, 2)
NONCE = "0123456789abcdef"


def accepted(
    root: Path,
    *answers: list[SpecCounts],
    again: dict[str, list[SpecCounts]] | None = None,
    rules: AcceptanceRules | None = None,
    flushed: bool = True,
) -> tuple[list[RequestRecord], DetectorVerdict]:
    """Return the requests of a server that sent these counts, one list an answer, and what acceptance says."""
    recorder = Recorder(
        make_folder(root), LimitWatch(1e9, 10**9, lambda: 0.0), AnswerDetectors(None), rules or AcceptanceRules()
    )
    for number, series in enumerate(answers):
        name, last = f"s:{number}", series[-1] if series else SpecCounts(200)
        sent = sent_request(
            name, text=FINE, completion_tokens=last.completion_tokens, spec_verify_ct=last.spec_verify_ct,
            spec_accept_token_num=last.spec_accept_token_num, spec_draft_token_num=last.spec_draft_token_num,
        )  # fmt: skip
        recorder.text_detectors(name, "say")
        (detector,) = recorder.counts_detectors(name)
        for finding in [*map(detector.feed, series), detector.close()]:
            if finding is not None:
                recorder.on_finding(name, finding)
        recorder.on_request(sent)
    asked = AskedAgain(dict.fromkeys(again or {}, FINE), again or {}, flushed=flushed)
    verdicts = [*event_verdicts(recorder), *judge_asked_again(recorder, asked)]
    recorder.folder.close("finished")
    return recorder.records, next(verdict for verdict in verdicts if verdict.detector == "acceptance")


def test_odd_acceptance_under_load_only_convicts_and_marks_its_request(tmp_path: Path) -> None:
    records, verdict = accepted(tmp_path, POOR, GOOD, again={"s:0": GOOD})
    assert (verdict.answer, verdict.checked, [f.request for f in verdict.findings]) == ("anomaly", 2, ["s:0"])
    assert [record.acceptance for record in records] == [True, False]
    assert not any(record.visible or record.model_own for record in records)
    assert records[1].spec_window_rates == pytest.approx([2 / 3] * 4)


def test_acceptance_that_is_as_odd_alone_on_a_dropped_cache_is_the_models_own(tmp_path: Path) -> None:
    records, verdict = accepted(tmp_path, POOR, again={"s:0": POOR})
    assert verdict.answer == "clean" and not records[0].acceptance
    _, verdict = accepted(tmp_path / "kept", POOR, again={"s:0": POOR}, flushed=False)
    assert verdict.answer == "unknown" and "did not drop its cache" in verdict.why


def test_odd_acceptance_that_was_not_asked_about_again_is_unknown(tmp_path: Path) -> None:
    assert accepted(tmp_path, POOR)[1].answer == "unknown"


def test_a_short_answer_alone_does_not_show_that_only_the_load_was_odd(tmp_path: Path) -> None:
    assert accepted(tmp_path, POOR, again={"s:0": GOOD[:20]})[1].answer == "unknown"


def test_a_target_that_tells_no_counts_is_not_judged_and_unknown_if_that_was_asked_for(tmp_path: Path) -> None:
    for name, answers, told in (
        ("none", ([], []), "tells no counts of speculative decoding"),
        ("short", (POOR[:50],), "no answer reached the 128 tokens that it takes to judge"),
    ):
        _, verdict = accepted(tmp_path / name, *answers)
        assert verdict.answer == "not_applicable" and told in verdict.why
        _, verdict = accepted(tmp_path / f"{name} asked", *answers, rules=AcceptanceRules(required=True))
        assert verdict.answer == "unknown" and told in verdict.why


def test_a_profile_of_another_configuration_does_not_apply_and_is_unknown_if_it_was_asked_for(tmp_path: Path) -> None:
    rules = AcceptanceRules(profile=learn("m", clean_answers(60, 0.7), 128), false_alarm_rate=0.05)
    other = steady(200, 2, drafts=5)
    for required, answer in ((False, "not_applicable"), (True, "unknown")):
        _, verdict = accepted(tmp_path / answer, other, rules=replace(rules, required=required))
        assert verdict.answer == answer and "of 3 drafts a verify, the server has 5" in verdict.why


def test_answers_without_counts_beside_others_and_counts_that_cannot_be_are_unknown(tmp_path: Path) -> None:
    _, verdict = accepted(tmp_path, GOOD, [])
    assert (verdict.answer, verdict.why) == ("unknown", "1 answer(s) came without counts")
    _, verdict = accepted(tmp_path / "odd", GOOD, [SpecCounts(300, 100, 301, 300)])
    assert verdict.answer == "unknown" and "more accepted drafts than drafts" in verdict.why


def test_a_leak_convicts_whatever_the_server_says_alone(tmp_path: Path) -> None:
    judges = AnswerDetectors(None, Nonces({"s": "f" * 16, "other": NONCE}))
    recorder = Recorder(make_folder(tmp_path), LimitWatch(1e9, 10**9, lambda: 0.0), judges)
    sent = sent_request("s:0", text=f"Ticket {NONCE}")
    for detector in recorder.text_detectors("s:0", "say"):
        if (finding := detector.feed(sent.text)) is not None:
            recorder.on_finding("s:0", finding)
    recorder.on_request(sent)
    (record,) = recorder.records
    verdicts = judge_asked_again(recorder, AskedAgain({"s:0": record.text}, flushed=True))
    recorder.folder.close("finished")
    leak = verdicts[-1]
    assert (leak.detector, leak.answer, leak.checked, len(leak.findings)) == ("cross_prompt_leak", "anomaly", 1, 1)
    assert record.visible and not record.model_own
