"""Tokens to text as they come: nothing is lost, nothing is shown too early, whatever the chunking."""

from hypothesis import given, settings
from hypothesis import strategies as st

from repro.serve.sched.request import TextStream

TOKENS = [bytes([byte]) for byte in range(256)]  # a byte-level vocabulary


def decode(tokens: list[int]) -> str:
    return b"".join(TOKENS[token] for token in tokens).decode("utf-8", "replace")


def streamed(text: bytes, stop: tuple[str, ...] = ()) -> tuple[list[str], str | None]:
    """Return what is shown after each token, and the stop string that ended it."""
    stream = TextStream(decode, stop)
    shown = []
    for token in text:
        part, stopped = stream.push(token)
        shown.append(part)
        if stopped is not None:
            return shown, stopped
    return [*shown, stream.flush()], None


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40))
def test_the_parts_of_any_text_are_the_text(text: str) -> None:
    parts, _ = streamed(text.encode("utf-8", "surrogatepass"))
    assert "".join(parts) == text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_the_parts_of_any_bytes_are_their_decoding(raw: bytes) -> None:
    assert "".join(streamed(raw)[0]) == raw.decode("utf-8", "replace")


def test_half_a_character_waits_for_its_other_half_wherever_it_stands() -> None:
    for before in range(20):
        parts, _ = streamed(b"a" * before + "é".encode())
        assert parts == ["a"] * before + ["", "é", ""]


def test_what_can_begin_a_stop_string_waits() -> None:
    assert streamed(b"one\n\ntwo", ("\n\n",)) == (["o", "n", "e", "", ""], "\n\n")
    assert streamed(b"a\nb", ("\n\n",)) == (["a", "", "\nb", ""], None)


def test_a_stop_string_over_several_tokens_is_cut_and_all_before_it_shown() -> None:
    parts, stopped = streamed(b"say END of it", ("END", "STOP"))
    assert ("".join(parts), stopped) == ("say ", "END")


def test_of_two_stop_strings_the_first_in_the_text_ends_it() -> None:
    parts, stopped = streamed(b"xbcd", ("d", "bc"))
    assert ("".join(parts), stopped) == ("x", "bc")


def test_a_false_start_of_a_stop_string_is_shown_and_the_right_one_still_found() -> None:
    parts, stopped = streamed(b"aab", ("ab",))
    assert ("".join(parts), stopped) == ("a", "ab")


def test_what_waits_is_given_out_at_the_end() -> None:
    assert streamed(b"x\n", ("\n\n",))[0] == ["x", "", "\n"]
    assert streamed(b"x\xc3")[0] == ["x", "", "\ufffd"]


@settings(max_examples=200, deadline=None)
@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3))
def test_the_shown_text_ends_where_a_stop_string_first_appears(text: str, stops: list[str]) -> None:
    parts, stopped = streamed(text.encode(), tuple(stops))
    ends = [(text.find(stop) + len(stop), text.find(stop), stop) for stop in stops if stop in text]
    if ends:
        first_end = min(end for end, _, _ in ends)
        place = min(place for end, place, _ in ends if end == first_end)
        assert "".join(parts) == text[:place] and stopped in stops
    else:
        assert ("".join(parts), stopped) == (text, None)
