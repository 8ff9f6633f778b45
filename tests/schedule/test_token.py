"""A token is short, says everything, and is not mistaken for another after a slip of the pen."""

import base64
import string

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repro.base.errors import UsageError
from repro.schedule import token as tokens
from repro.schedule.overrides import Overrides
from repro.schedule.payload import pack
from repro.schedule.schedule import STRATEGIES, WINDOWS_US, Schedule
from repro.schedule.token import TOKEN_CHARACTERS_MAX, Token, decode

SIGNS = string.ascii_letters + string.digits + "-_"

steps = st.lists(st.integers(0, 2**20), max_size=40, unique=True).map(sorted)
schedules = st.builds(
    Schedule,
    strategy=st.sampled_from(STRATEGIES),
    seed=st.integers(0, 2**63 - 1),
    window=st.integers(0, len(WINDOWS_US) - 1),
    steps=st.integers(0, 2**24),
    weights=st.lists(st.integers(0, 30), max_size=20).map(tuple),
    deviations=st.builds(lambda at: tuple((step, 1 + step % 5) for step in at), steps),
)
numbered = st.lists(st.integers(0, 40), max_size=9, unique=True).map(sorted).map(tuple)
numbers = st.none() | st.integers(1, 2**20)
overrides = st.builds(
    Overrides,
    stamps=st.booleans(),
    sessions=st.none() | numbered,
    turns=numbers,
    prompt_tokens=numbers,
    answer_tokens=numbers,
    device_pages=numbers,
    context_tokens=numbers,
    requests=numbers,
    faults=st.none() | numbered,
    gap_ms=numbers,
    host_pages=numbers,
    turns_in_all=numbers,
    abort_ms=numbers,
    decode_pages=numbers,
    fires_after=numbers,
)
any_token = st.builds(
    Token,
    scenario=st.binary(min_size=5, max_size=5),
    control=st.booleans(),
    no_faults=st.booleans(),
    fingerprint=st.binary(min_size=8, max_size=8).map(bytes.hex),
    code=st.binary(min_size=4, max_size=4),
    machine=st.binary(min_size=2, max_size=2),
    seed=st.integers(0, 2**63 - 1),
    schedule=schedules | st.just(Schedule()),
    overrides=overrides | st.just(Overrides()),
)


def make_token(**changes: object) -> Token:
    fields = {"scenario": b"fives", "control": False, "no_faults": True, "fingerprint": "ab" * 8}
    return Token(**(fields | {"code": b"code", "machine": b"ma", "seed": 7} | changes))


@given(any_token)
def test_a_token_comes_back_and_is_short(token: Token) -> None:
    text = token.encode()
    found = decode(text)
    if found.elsewhere:  # too long: the token names everything but its payload
        assert len(pack(token.seed, token.schedule, token.overrides)) > 8
        token = msgspec.structs.replace(token, seed=0, schedule=Schedule(), overrides=Overrides(), elsewhere=True)
    assert found == token
    assert len(text) <= TOKEN_CHARACTERS_MAX and set(text) <= set(SIGNS)
    assert decode(f" {text}\n") == found  # as copied from a terminal


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
        assert found == decode(text)  # the last sign may hold bits that are no part of it


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


def test_what_a_search_finds_fits() -> None:
    light = Overrides(True, tuple(range(6)), 3, None, 48, 128)
    seeded = make_token(schedule=Schedule("pct3", 9_999, 2, steps=30_000), overrides=light)
    mutant = make_token(schedule=Schedule("pos", 9_999, 3, deviations=((810, 1), (3_000, 2))), overrides=light)
    shrunk = make_token(
        schedule=Schedule("timed", 0, 2, deviations=((10, 1), (90, 1), (400, 2), (600, 1), (900, 1))),
        overrides=Overrides(True, (3,), 1, 800, 8, 28, 896, 3, ()),
    )
    for token in (seeded, mutant, shrunk):
        assert decode(token.encode()) == token


def test_a_schedule_that_does_not_fit_is_left_in_the_folder_and_the_token_says_so() -> None:
    long, other = (Schedule(deviations=tuple((9 * n, chosen) for n in range(50))) for chosen in (1, 2))
    text = make_token(schedule=long).encode()
    assert decode(text).elsewhere and len(text) <= TOKEN_CHARACTERS_MAX
    assert text != make_token(schedule=other).encode()


def test_a_scenario_is_named_by_every_byte_of_its_text() -> None:
    assert tokens.scenario_hash("a = 1\n") != tokens.scenario_hash("a = 1")


def test_the_code_is_named_once_and_by_its_files() -> None:
    assert tokens.code_hash() == tokens.code_hash.__wrapped__()
    assert len(tokens.code_hash()) == 4 and len(tokens.machine_hash()) == 2
