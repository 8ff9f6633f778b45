"""A nonce of another session convicts, whole or in part, however it is cut; one's own does not."""

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.answers.leak import STRETCH_DIGITS, CrossPromptLeak, Nonces
from detectors.base import Finding

OWN, OTHER = "bf20886390f24cde", "0123456789abcdef"
NONCES = Nonces({"mine": OWN, "theirs": OTHER})
PROMPT = f"system\nTicket {OWN}.\nOpen a file"


def leak_in(*pieces: str, prompt: str = PROMPT, nonces: Nonces = NONCES) -> Finding | None:
    detector = CrossPromptLeak(prompt, nonces)
    found = [finding for piece in pieces if (finding := detector.feed(piece)) is not None]
    assert len(found) <= 1 and detector.close() is None
    return found[0] if found else None


def test_another_sessions_nonce_convicts_and_names_the_session() -> None:
    finding = leak_in("the ticket is ", f"Ticket {OTHER}.", " and more")
    assert finding is not None and (finding.detector, finding.layer) == ("cross_prompt_leak", "text")
    assert finding.evidence.session == "theirs" and OTHER in str(finding.evidence.excerpt)
    assert "theirs" not in finding.signature


def test_ones_own_nonce_is_no_leak_and_does_not_hide_one() -> None:
    assert leak_in(f"Ticket {OWN}." * 3) is None
    assert leak_in(f"Ticket {OWN}.", f"Ticket {OTHER}.") is not None


@pytest.mark.parametrize("start", range(5))
def test_twelve_digits_are_enough_wherever_they_stand(start: int) -> None:
    stretch = OTHER[start : start + STRETCH_DIGITS]
    assert leak_in(f"x{stretch}z") is not None
    assert leak_in(f"x{stretch[:-1]}z") is None
    assert leak_in(f"ffff{stretch}ffff") is not None


def test_a_nonce_that_the_history_brought_into_the_prompt_is_no_new_leak() -> None:
    assert leak_in(OTHER, prompt=f"{PROMPT}\n{OTHER}") is None


def test_ordinary_hexadecimal_is_no_leak() -> None:
    assert leak_in("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" * 20) is None


def test_sessions_without_a_nonce_that_tells_them_apart_have_none() -> None:
    assert not Nonces({}) and not Nonces({"a": "n", "b": "the word fox", "c": OTHER[:11]})
    assert Nonces({"a": "n", "b": OTHER})


@settings(max_examples=80, deadline=None)
@given(st.text("0123456789abcdef xyz", max_size=40), st.booleans(), st.lists(st.integers(1, 9), min_size=1))
def test_however_the_stream_is_cut_the_answer_is_the_same(around: str, leaks: bool, cuts: list[int]) -> None:
    text = around + (OTHER if leaks else "") + around
    pieces, at, number = [], 0, 0
    while at < len(text):
        size = cuts[number % len(cuts)]
        pieces.append(text[at : at + size])
        at, number = at + size, number + 1
    assert (leak_in(*pieces) is None) == (leak_in(text) is None)
    assert not leaks or leak_in(*pieces) is not None


def test_its_cost_does_not_grow_with_the_sessions() -> None:
    draw = random.Random(1)
    many = {f"s{number}": f"{draw.getrandbits(64):016x}" for number in range(20_000)}
    pieces = ["def f(x):", " return 0x", "deadbeefcafe12", "\n"] * 5_000

    def seconds(nonces: Nonces) -> float:
        detector, started = CrossPromptLeak(PROMPT, nonces), time.process_time()
        for piece in pieces:
            detector.feed(piece)
        return time.process_time() - started

    few = Nonces(dict(list(many.items())[:2]))
    seconds(few)
    assert seconds(Nonces(many)) < 5 * seconds(few) + 0.05
