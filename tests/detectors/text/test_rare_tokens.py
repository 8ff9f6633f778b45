"""Impossible ids, surprising tokens, rare characters; and what is none of them."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.base import Finding
from detectors.text.rare_tokens import RareTokens, Vocabulary

VOCABULARY = Vocabulary(
    size=4096, reachable=frozenset(range(4080)), special=frozenset(range(10)), ends=frozenset((0, 7))
)


def findings(
    text: str = "",
    tokens: tuple[int, ...] = (),
    logprobs: tuple[float, ...] = (),
    prompt: str = "",
    chunk: int = 1,
) -> list[Finding]:
    detector = RareTokens(prompt, VOCABULARY)
    found = []
    for start in range(0, max(len(text), len(tokens), len(logprobs)), chunk):
        part = slice(start, start + chunk)
        found.append(detector.feed(text[part], tokens[part], logprobs[part]))
    return [finding for finding in (*found, detector.close()) if finding is not None]


@pytest.mark.parametrize(
    ("token", "what"),
    [(4085, "padding row"), (4096, "outside"), (1 << 40, "outside"), (-1, "outside"), (3, "control token 3")],
)
def test_an_impossible_id_convicts_at_once(token: int, what: str) -> None:
    detector = RareTokens("", VOCABULARY)
    assert detector.feed("ordinary", (20, 21, 4079)) is None
    finding = detector.feed("", (30, token))
    assert finding is not None and what in finding.claim
    assert finding.evidence.id == token and finding.signature == "impossible id"
    assert detector.feed("", (token,)) is None


def test_an_end_token_may_come_last_only() -> None:
    assert findings(tokens=(20, 21, 7)) == []
    (finding,) = findings(tokens=(20, 7, 21, 22))
    assert "follows the end token 7" in finding.claim


def test_without_a_vocabulary_ids_are_not_judged() -> None:
    detector = RareTokens()
    assert detector.feed("x", (1 << 30,)) is None and detector.close() is None


@pytest.mark.parametrize("chunk", [1, 5, 700])
def test_spelled_control_token_in_the_content_convicts(chunk: int) -> None:
    vocabulary = Vocabulary(size=9, reachable=frozenset(range(9)), spellings=("<|user|>", "<|assistant|>"))

    def told(text: str, prompt: str = "") -> list[str]:
        detector = RareTokens(prompt, vocabulary)
        found = [detector.feed(text[at : at + chunk]) for at in range(0, len(text), chunk)]
        return [finding.signature for finding in (*found, detector.close()) if finding is not None]

    text = "x = 1\n" * 84 + "end<|assistant|>def f():\n"
    assert told(text) == ["leaked control token"]
    assert told("x = 1\n<|user|>") == []
    assert told(text, prompt="quote <|assistant|>") == []
    assert told("if a <|b|> c:\n") == []


def test_missing_ids_and_logprobs_are_no_evidence() -> None:
    assert findings(text="ordinary words\n" * 300) == []


@pytest.mark.parametrize(
    "healthy", [(-0.01,) * 2000, (-0.7, -0.1, -2.5, -0.05) * 500, (0.0,) * 50, (-9.0,), (-1.4,) * 900]
)
def test_a_sure_model_is_silent(healthy: tuple[float, ...]) -> None:
    assert findings(logprobs=healthy) == []


@pytest.mark.parametrize(
    "unsure",
    [
        (-0.1,) * 500 + (-4.0,) * 30,
        (-5.0,) * 20,
        (-0.01,) * 300 + (-13.0, -0.1, -14.0, -0.1, -15.0),
        (math.nan,) * 4,
        (-math.inf,) * 3,
    ],
)
def test_an_unsure_model_convicts(unsure: tuple[float, ...]) -> None:
    (finding,) = findings(logprobs=unsure)
    assert finding.signature == "surprising tokens"


def test_rare_characters_convict_unless_the_prompt_has_them() -> None:
    text = "icon \ue0b0 and \ue0b1 and \U000e0041 here"
    (finding,) = findings(text=text)
    assert "U+E0B0" in finding.claim
    assert findings(text=text, prompt="prompt \ue0b0 \ue0b1 \U000e0041") == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "one \ue0b0 icon",
        "tab\tform\ffeed\r\n\x1b[31mred\x1b[0m" * 9,
        "😀🎉🚀" * 50,
        "中文かな한글" * 40,
        "𝒜𝓁𝓅𝒽𝒶 ∑ ≤ ½" * 9,
    ],
)
def test_ordinary_characters_are_silent(text: str) -> None:
    assert findings(text=text) == []


def test_two_kinds_found_in_one_step_are_both_told() -> None:
    detector = RareTokens("", VOCABULARY)
    first = detector.feed("\ue000\ue001\ue002" * 200, (4090,))
    second = detector.close()
    assert first is not None and first.signature == "impossible id"
    assert second is not None and second.signature == "rare characters"


@settings(max_examples=100, deadline=None)
@given(
    st.text(st.characters(), max_size=1200),
    st.lists(st.floats(-20, 0), max_size=200),
    st.lists(st.integers(0, 4100), max_size=200),
    st.integers(1, 700),
)
def test_chunking_does_not_change_the_verdict(text: str, logprobs: list[float], tokens: list[int], chunk: int) -> None:
    for part in ({"text": text}, {"logprobs": tuple(logprobs)}, {"tokens": tuple(tokens)}):
        assert findings(**part, chunk=chunk) == findings(**part) == findings(**part, chunk=10_000)  # type: ignore[arg-type]
