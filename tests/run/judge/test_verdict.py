"""Which word a run deserves, and the sentences that say why."""

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from detectors.base import Answer, DetectorVerdict, Finding
from repro.base.verdict_word import VerdictWord
from repro.fault.kinds import Abort, Delay, Flip
from repro.fault.plan import Fault
from repro.load.plan import LoadResult
from repro.record.exercised import Exercised
from repro.record.requests import RequestRecord
from repro.record.verdict import EndedEarly, FaultOutcome
from repro.run.judge.verdict import Judgement, RunEvidence, judge
from tests.builders import make_request

DELAY = Fault("loadback.copy_layer", Delay(5))
FLIP = Fault("memory.host", Flip())
ABORT = Fault("client.abort", Abort(5))


def result(**changes: Any) -> LoadResult:
    return LoadResult(**({"answered": 3} | changes))


def judged(
    verdicts: Sequence[DetectorVerdict], load: LoadResult, records: Sequence[RequestRecord] = (), **more: Any
) -> Judgement:
    return judge(RunEvidence(verdicts=verdicts, result=load, records=records, **more))


def said(answer: Answer = "clean", detector: str = "ordering", why: str = "", count: int = 2) -> DetectorVerdict:
    findings = (Finding(detector, "ordering", "a claim", "cause", count=count),) if answer == "anomaly" else ()
    return DetectorVerdict(detector, answer, findings, why)


def failed_request(request: str = "s1-t1", error: str = "died: gone", **changes: Any) -> RequestRecord:
    turn = int(request[-1])
    return make_request(request, turn=turn, finish="error", error=error, text="", tokens=[], **changes)


def test_a_run_with_nothing_against_it_is_clean() -> None:
    assert judged([said()], result(), [make_request()]) == Judgement(VerdictWord.CLEAN, ())
    assert [word.exit_code for word in VerdictWord] == [0, 1, 2, 3, 4, 5]


def test_a_finding_is_an_anomaly_whatever_is_missing() -> None:
    unknown = said("unknown", "divergence", "nothing to compare")
    judgement = judged(
        [said("anomaly"), unknown], result(), [make_request()], cut=EndedEarly("the limit was reached", 9)
    )
    assert judgement.word == "anomaly" and judgement.word.exit_code == 1
    assert judgement.why[0].startswith("ordering: 2 finding")
    assert judgement.why[1] == "the limit was reached; the figures are of what was done"


def test_a_fault_that_never_fired_proves_nothing() -> None:
    judgement = judged([said()], result(), faults=[ABORT], fault_outcomes={ABORT.name: FaultOutcome(reached=4)})
    assert judgement == Judgement(VerdictWord.VACUOUS, ("client.abort.abort never fired (4 hits of its point)",))
    assert judgement.word.exit_code == 3


def test_a_timing_fault_that_changed_no_order_proves_nothing_and_another_kind_does() -> None:
    fired = FaultOutcome(reached=4, fired=3)
    judgement = judged([said()], result(), faults=[DELAY, DELAY], fault_outcomes={DELAY.name: fired})
    assert judgement.why == ("loadback.copy_layer.delay fired 3 times and never changed an order",)
    assert judged([said()], result(), faults=[ABORT], fault_outcomes={ABORT.name: fired}).word == "clean"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, "memory.host.flip fired 3 times and never changed a byte"),
        ({"changed": 2, "read": 0, "detected": 0}, "memory.host.flip changed bytes 2 times, and no step read them"),
    ],
)
def test_wrong_bytes_that_nobody_read_prove_nothing(changes: dict[str, int], why: str) -> None:
    outcomes = {FLIP.name: FaultOutcome(reached=4, fired=3, **changes)}
    judgement = judged([said()], result(), faults=[FLIP], fault_outcomes=outcomes)
    assert judgement == Judgement(VerdictWord.VACUOUS, (why,))


def test_wrong_bytes_that_were_read_and_not_noticed_are_never_clean() -> None:
    outcomes = {FLIP.name: FaultOutcome(reached=4, fired=3, changed=3, read=2, detected=1)}
    for answer, word in (("clean", "inconclusive"), ("anomaly", "anomaly")):
        judgement = judged([said(answer)], result(), faults=[FLIP], fault_outcomes=outcomes)
        assert judgement.word == word
        assert judgement.why[-1] == "memory.host.flip: of 2 changes that a step read, 1 were not noticed"


def test_a_floor_that_is_missed_is_told_with_both_numbers() -> None:
    floors = {"load_backs": 20, "evictions": 2}
    judgement = judged([said()], result(), exercised=Exercised(load_backs=3, evictions=2), floors=floors)
    assert judgement == Judgement(VerdictWord.VACUOUS, ("load_backs = 3, below the floor of 20",))


def test_a_run_that_was_cut_is_inconclusive_and_not_vacuous() -> None:
    judgement = judged(
        [said()], result(interrupted=True), floors={"load_backs": 20}, cut=EndedEarly("Ctrl-C ended the run early", 9)
    )
    assert judgement == Judgement(
        VerdictWord.INCONCLUSIVE, ("Ctrl-C ended the run early; the figures are of what was done",)
    )
    assert judgement.word.exit_code == 5


def test_an_unknown_of_a_detector_never_counts_as_clean() -> None:
    judgement = judged([said(), said("unknown", "divergence", "3 of 8 answers could not be decoded")], result())
    assert judgement == Judgement(VerdictWord.INCONCLUSIVE, ("divergence: 3 of 8 answers could not be decoded",))
    assert judged([said("not_applicable", "divergence")], result()).word == "clean"


def test_a_target_that_is_lost_is_told_before_anything_else() -> None:
    lost = result(target_lost="refused: no connection")
    judgement = judged([said("anomaly")], lost)
    assert judgement == Judgement(VerdictWord.FAILED, ("the target stopped answering: refused: no connection",))
    assert judgement.word.exit_code == 4


def test_no_answer_at_all_is_a_failure_with_its_first_error() -> None:
    records = [failed_request(error="malformed: no stream")]
    judgement = judged([said()], result(answered=0, errors={"malformed": 4}), records)
    assert judgement.word == "failed"
    assert judgement.why == ("no request was answered: 4 malformed; the first, s1-t1: malformed: no stream",)


def test_a_server_that_is_gone_at_the_end_is_a_failure() -> None:
    records = [make_request("s1-t0"), failed_request("s1-t1", "refused: nobody there", finished_us=2e6)]
    judgement = judged([said()], result(errors={"refused": 1}), records)
    assert judgement.why == ("the target stopped answering: s1-t1: refused: nobody there",)


@pytest.mark.parametrize("finish", ["stop", "abort"])
def test_turns_without_an_answer_are_counted_once_with_all_their_attempts(finish: str) -> None:
    records = [
        failed_request("s1-t1", "busy: 503"),
        failed_request("s1-t1", "busy: 503", attempt=1),
        failed_request("s1-t2", "busy: 503"),
        make_request("s1-t2", turn=2, attempt=1),
        make_request("s1-t3", turn=3, finish=finish, finished_us=9e6),
    ]
    judgement = judged([said()], result(answered=2, errors={"busy": 3}), records)
    assert judgement == Judgement(
        VerdictWord.INCONCLUSIVE, ("1 of 3 turns got no answer: 1 busy; the first, s1-t1: busy: 503",)
    )


def test_what_we_cut_off_ourselves_is_no_error_of_the_target() -> None:
    records = [make_request("s1-t0"), failed_request("s1-t1", "client: interrupted", finished_us=9e6)]
    assert judged([said()], result(errors={"client": 1}), records).word == "clean"
    aborted = [make_request("s1-t0", finish="abort", text="", tokens=[])]
    assert judged([said()], result(answered=0, aborted=1, errors={"busy": 1}), aborted).word == "clean"


def test_answers_that_are_all_empty_are_no_sign_of_health() -> None:
    records = [make_request("s1-t0", text="", tokens=[])]
    judgement = judged([said()], result(), records)
    assert judgement == Judgement(VerdictWord.INCONCLUSIVE, ("all 1 answers are empty: there was nothing to judge",))
    assert msgspec.json.encode(judgement)
