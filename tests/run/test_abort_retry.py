"""Giving convicted answers up on the bundled stack: the request is aborted there, and the run stays one run."""

from pathlib import Path

import pytest

from detectors.base import Finding, TextDetector
from repro.record.view import open_run
from repro.run.answer_detectors import AnswerDetectors
from repro.run.outcome import Outcome
from tests.tiny import run_tiny, tiny_scenario


class ThirdPiece:
    """Convicts an answer at its third piece."""

    name = "repetition"

    def __init__(self) -> None:
        self._pieces = 0

    def feed(self, text: str, tokens: tuple[int, ...] = (), logprobs: tuple[float, ...] = ()) -> Finding | None:
        self._pieces += 1
        return Finding(self.name, "text", "a claim", "a cause") if self._pieces == 3 else None

    def close(self) -> Finding | None:
        return None


def first_answers_convicted(judges: AnswerDetectors, request: str, prompt: str) -> list[TextDetector]:
    return [] if request.endswith(".1") else [ThirdPiece()]


@pytest.fixture
def convicting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AnswerDetectors, "__call__", first_answers_convicted)


def run(root: Path) -> Outcome:
    return run_tiny(root, tiny_scenario(load='on_anomaly = "abort-retry"'))


@pytest.mark.usefixtures("convicting")
def test_the_stack_aborts_what_is_given_up_and_serves_the_retry(tmp_path: Path) -> None:
    outcome = run(tmp_path)
    records = open_run(outcome.path).requests
    assert [(record.finish, record.retry_of != "") for record in records if record.turn == 0] == [
        ("abort", False), ("abort", False), ("length", True), ("length", True),
    ]  # fmt: skip
    assert outcome.verdict.retries.retried_clean == 4
    aborted = {event.request for event in open_run(outcome.path).events() if getattr(event, "what", "") == "aborted"}
    assert aborted == {record.retry_of for record in records if record.retry_of}


@pytest.mark.usefixtures("convicting")
def test_a_run_that_gives_answers_up_comes_again(tmp_path: Path) -> None:
    assert run(tmp_path / "a").fingerprint == run(tmp_path / "b").fingerprint


def test_a_run_that_gives_nothing_up_is_the_same_run_whatever_it_would_do(tmp_path: Path) -> None:
    assert run(tmp_path / "a").fingerprint == run_tiny(tmp_path / "b").fingerprint
