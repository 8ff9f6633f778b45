"""A token is short, says everything, and is not mistaken for another after a slip of the pen."""

import base64
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repro.base.errors import UsageError
from repro.schedule import token as tokens
from repro.schedule.token import SEED_MAX, TOKEN_CHARACTERS_MAX, Token, decode

SIGNS = string.ascii_letters + string.digits + "-_"

any_token = st.builds(
    Token,
    scenario=st.binary(min_size=6, max_size=6),
    seed=st.integers(0, SEED_MAX),
    control=st.booleans(),
    no_faults=st.booleans(),
    picker=st.sampled_from(["timed", "random"]),
    fingerprint=st.binary(min_size=10, max_size=10).map(bytes.hex),
    code=st.binary(min_size=6, max_size=6),
    machine=st.binary(min_size=3, max_size=3),
)


def make_token(seed: int = 7) -> Token:
    return Token(b"sixsix", seed, False, True, "random", "ab" * 10, b"codeco", b"mac")


@given(any_token)
def test_a_token_comes_back_and_is_short(token: Token) -> None:
    text = token.encode()
    assert decode(text) == token
    assert len(text) <= TOKEN_CHARACTERS_MAX and set(text) <= set(SIGNS)
    assert decode(f" {text}\n") == token  # as copied from a terminal


@settings(max_examples=300)
@given(any_token, st.data())
def test_a_slip_is_noticed(token: Token, data: st.DataObject) -> None:
    text = token.encode()
    place = data.draw(st.integers(0, len(text) - 1))
    sign = data.draw(st.sampled_from(SIGNS))
    changed = data.draw(
        st.sampled_from([text[:place] + sign + text[place + 1 :], text[:place] + text[place + 1 :], text + sign])
    )
    try:
        found = decode(changed)
    except UsageError as error:
        assert "copy all of its characters" in str(error)
    else:
        assert found == token  # the last sign may hold bits that are no part of it


@given(st.text(max_size=200))
def test_whatever_is_no_token_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match=r'^".*(copy all of its characters|version)'):
        decode(text.replace("\n", " "))


def test_a_token_of_another_version_is_told_so() -> None:
    text = make_token().encode()
    body = bytes((9,)) + base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))[1:-3]
    other = base64.urlsafe_b64encode(body + tokens._check(body)).rstrip(b"=").decode()
    with pytest.raises(UsageError, match=r"is a token of version 9, this package reads version \d"):
        decode(other)


def test_a_scenario_is_named_by_every_byte_of_its_text() -> None:
    assert tokens.scenario_hash("a = 1\n") != tokens.scenario_hash("a = 1")


def test_the_code_is_named_once_and_by_its_files() -> None:
    assert tokens.code_hash() == tokens.code_hash.__wrapped__()
    assert len(tokens.code_hash()) == 6 and len(tokens.machine_hash()) == 3
