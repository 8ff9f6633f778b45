"""The detectors as the load driver holds them."""

import inspect
import shlex
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.base import TextDetector
from detectors.registry import TEXT_NAMES, text_detectors
from detectors.text.rare_tokens import Vocabulary

CODE = inspect.getsource(shlex)
VOCABULARY = Vocabulary(size=64, reachable=frozenset(range(60)))


def signatures(judges: list[TextDetector], deltas: list[str]) -> set[str]:
    found = [judge.feed(delta) for delta in deltas for judge in judges]
    found += [judge.close() for judge in judges]
    return {finding.signature for finding in found if finding is not None}


def test_every_answer_gets_its_own_detectors() -> None:
    first, second = text_detectors("", VOCABULARY), text_detectors("", None)
    assert tuple(judge.name for judge in first) == TEXT_NAMES
    assert not set(map(id, first)) & set(map(id, second))


def test_clean_code_is_silent() -> None:
    assert (
        signatures(text_detectors(CODE[:2000], VOCABULARY), [CODE[2000 + at : 2003 + at] for at in range(0, 6000, 3)])
        == set()
    )


def test_each_symptom_has_its_detector() -> None:
    clean = [CODE[at : at + 5] for at in range(0, 1500, 5)]
    assert signatures(text_detectors("", None), [*clean, "ceived" * 40]) == {"loop of text"}
    assert signatures(text_detectors("", None), [*clean, "\ufffd " * 30]) >= {"garbled: broken bytes"}
    judges = text_detectors("", VOCABULARY)
    assert [judge.feed("x", (61,)) is not None for judge in judges] == [False, False, True]


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=1500), st.integers(1, 400))
def test_any_chunking_gives_the_same_verdicts(text: str, chunk: int) -> None:
    deltas = [text[at : at + chunk] for at in range(0, len(text), chunk)]
    assert signatures(text_detectors("", None), deltas) == signatures(text_detectors("", None), [text])


def test_time_grows_with_the_text_only() -> None:
    def seconds(chars: int) -> float:
        judges = text_detectors(CODE, VOCABULARY)
        text = (CODE * (chars // len(CODE) + 1))[:chars]
        started = time.process_time()
        for at in range(0, chars, 4):
            for judge in judges:
                judge.feed(text[at : at + 4], (7,), (-0.1,))
        return time.process_time() - started

    seconds(20_000)  # the table of common n-grams is read once
    assert seconds(400_000) < 40 * max(0.01, seconds(40_000))
