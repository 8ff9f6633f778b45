"""Answers: nothing invisible is left, nothing is lost, and the first difference is found."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.run.answers import ANSWER_CHARACTERS_MAX, compare, difference, pieces, visible_text
from tests.builders import divergence_finding, make_request, race_finding

any_text = st.text(st.characters(codec=None))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x00b\x1b[31m", "a\\x00b\\x1b[31m"),
        ("\u202eevil", "\\u202eevil"),
        ("zero\u200bwidth\u00a0", "zero\\u200bwidth\\xa0"),
        ("\U000e0041", "\\U000e0041"),
        ("\ud800", "\\ud800"),
        ("tab\tand\nline é 中 🙂", "tab\tand\nline é 中 🙂"),
        ("bell\x07\r\n", "bell\\x07\\x0d\n"),
    ],
)
def test_what_cannot_be_seen_is_written_out(text: str, shown: str) -> None:
    assert visible_text(text) == shown


@given(any_text)
def test_nothing_hidden_survives_and_nothing_is_lost(text: str) -> None:
    parts = pieces(text)
    assert "".join(part.text for part in parts) == visible_text(text)
    assert all(part.escape == part.text.startswith("\\") or not part.escape for part in parts)
    seen = "".join(part.text for part in parts if not part.escape)
    assert all(character in "\n\t " or unicodedata.category(character)[0] not in "CZ" for character in seen)


@given(any_text, any_text, any_text)
def test_a_difference_puts_both_answers_together_again(common: str, clean: str, got: str) -> None:
    found = difference(common + clean, common + got)
    assert (common + got).endswith(found.before + found.wrong + found.got)
    assert (common + clean).endswith(found.before + found.clean)
    assert found.equal == (clean == got)
    if found.wrong and found.clean:
        assert found.wrong[0] != found.clean[0]


def test_the_first_wrong_word_is_marked() -> None:
    found = difference("def read(path):\n  pass", "def readceived ceived")
    assert (found.before, found.wrong, found.got) == ("def read", "ceived", " ceived")


def test_long_answers_are_cut_around_the_difference() -> None:
    same = "line\n" * 5_000
    found = difference(same + "a" * 9_000, same + "b" * 9_000)
    assert found.cut_before and found.cut_clean and found.cut_got
    assert found.before.startswith("line\n") and len(found.before) <= 600
    assert len(found.wrong + found.got) == ANSWER_CHARACTERS_MAX


def test_a_cut_answer_differs_where_it_ends() -> None:
    found = difference("a b c", "a b")
    assert (found.before, found.clean, found.wrong, found.got) == ("a b", " c", "", "")


def test_the_note_names_token_ids_and_the_gap() -> None:
    record = make_request("s1-t1", tokens=[1, 2, 99], clean_tokens=[1, 2, 3], oracle="diverged")
    found = compare(divergence_finding(), record)
    assert found is not None
    assert found.note.startswith("First wrong token: number 2, id 99 where the clean decode has 3; ")
    assert "7.5" in found.note


def test_without_a_clean_decode_there_is_nothing_to_compare() -> None:
    assert compare(race_finding(), None) is None
    assert compare(race_finding(), make_request(oracle="")) is None
    same = compare(race_finding(), make_request(oracle="same"))
    assert same is not None and same.equal
