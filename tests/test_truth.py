"""Who convicts: an answer that looks wrong undisturbed, too, is the model's own and convicts nobody."""

from pathlib import Path

import pytest

from detectors.base import Verdict
from repro.judges import TextJudges
from repro.limits import LimitWatch
from repro.load.again import AskedAgain
from repro.observed import Observed
from repro.record.requests import RequestRecord
from repro.target import ServerTarget
from repro.truth import verdicts_of
from tests.builders import make_folder, make_request, text_finding

LOOP = "over and " * 60
FINE = "def read(path):\n    return path.read_text()\n"


def judged(root: Path, again: AskedAgain, text: str = LOOP) -> tuple[RequestRecord, dict[str, Verdict]]:
    """Return a suspect of a server at a URL, and the detectors' answers, given what it said again."""
    observed = Observed(make_folder(root), LimitWatch(1e9, 10**9, lambda: 0.0), TextJudges(None))
    record = make_request("s:0", text=text, oracle="", tokens=[], logprobs=[], detectors=["repetition"])
    observed.asked("s:0", "say")
    observed.finding("s:0", text_finding("repetition"))
    observed.request(record)
    target = ServerTarget("http://127.0.0.1:1")
    target.said_again = again
    verdicts = verdicts_of(observed, target, TextJudges(None), sample=8, seed=0, progress=lambda number, total: None)
    observed.folder.close("finished")
    return record, {verdict.detector: verdict for verdict in verdicts}


def test_wrong_alone_on_a_dropped_cache_is_the_models_own(tmp_path: Path) -> None:
    for again in (LOOP, LOOP + "again"):
        record, verdicts = judged(tmp_path, AskedAgain({"s:0": again}, flushed=True))
        assert record.own and not record.visible and verdicts["repetition"].answer == "clean"


@pytest.mark.parametrize("flushed", [True, False])
def test_wrong_under_load_only_convicts(tmp_path: Path, flushed: bool) -> None:
    record, verdicts = judged(tmp_path, AskedAgain({"s:0": FINE}, flushed=flushed))
    assert (record.visible, record.own, record.oracle, record.clean_text) == (True, False, "other", FINE)
    assert verdicts["repetition"].answer == "anomaly" and len(verdicts["repetition"].findings) == 1


def test_wrong_again_on_a_cache_that_may_be_corrupted_is_unknown(tmp_path: Path) -> None:
    record, verdicts = judged(tmp_path, AskedAgain({"s:0": LOOP}, flushed=False))
    assert not record.visible and not record.own
    assert verdicts["repetition"].answer == "unknown" and "did not drop its cache" in verdicts["repetition"].why


def test_a_suspect_that_could_not_be_asked_again_is_unknown(tmp_path: Path) -> None:
    record, verdicts = judged(tmp_path, AskedAgain({}, flushed=True))
    assert verdicts["repetition"].answer == "unknown" and "could not be asked" in verdicts["repetition"].why
    assert verdicts["garbled"].answer == "clean" and not record.visible


def test_what_a_url_cannot_tell_is_not_applicable(tmp_path: Path) -> None:
    _, verdicts = judged(tmp_path, AskedAgain())
    blind = ("ordering", "ownership", "canary", "divergence")
    assert {verdicts[name].answer for name in blind} == {"not_applicable"}
    assert all(verdicts[name].why for name in blind)
