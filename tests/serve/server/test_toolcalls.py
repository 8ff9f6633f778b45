"""Tool calls come out of a stream as they come out of the whole text."""

from hypothesis import given
from hypothesis import strategies as st

from repro.serve.server.schema import FunctionSpec, Tool
from repro.serve.server.toolcalls import CallWriter, ParsedCall, ToolCallReader, parse

CALL = "<tool_call>f<arg_key>a</arg_key><arg_value>x</arg_value></tool_call>"
TRICKY = "<tool_call>f<arg_key>a</arg_key><arg_value>s = '</tool_call>'</arg_value></tool_call>"
PIECES = st.sampled_from([CALL, TRICKY, "<tool_call>", "</tool_call>", "<tool", "<", "text", "\n", "é", "<arg_key>"])


def read(parts: list[str]) -> list[str | ParsedCall]:
    """Return the pieces with neighbouring text joined."""
    reader = ToolCallReader()
    joined: list[str | ParsedCall] = []
    for piece in [piece for part in parts for piece in reader.feed(part)] + reader.end():
        if joined and isinstance(piece, str) and isinstance(joined[-1], str):
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined


@given(st.lists(PIECES, max_size=8), st.randoms(use_true_random=False))
def test_any_split_gives_the_same_pieces(pieces: list[str], random: object) -> None:
    text = "".join(pieces)
    cuts = sorted(random.randrange(len(text) + 1) for _ in range(6))  # type: ignore[attr-defined]
    parts = [text[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert read(parts) == read([text]) == read(list(text))


@given(st.lists(PIECES, max_size=8))
def test_text_outside_calls_is_kept_to_the_letter(pieces: list[str]) -> None:
    text = "".join(pieces)
    at = 0
    for piece in read([text]):
        if isinstance(piece, str):
            assert text.startswith(piece, at)
            at += len(piece)
        else:  # some end tag after `at` closes it
            assert text.startswith("<tool_call>", at)
            ends = [end for end in range(at, len(text) + 1) if text[at:end].endswith("</tool_call>")]
            at = next(end for end in ends if parse(text[at:end]) == ("", (piece,)))
    assert at == len(text)


def test_a_call_comes_out_as_soon_as_it_is_complete() -> None:
    reader = ToolCallReader()
    assert reader.feed("look: <to") == ["look: "]
    assert reader.feed(CALL[3:-1]) == []
    assert reader.feed(">and") == [ParsedCall("f", {"a": "x"}), "and"]


def test_an_end_tag_inside_an_argument_does_not_end_the_call() -> None:
    assert read([TRICKY]) == [ParsedCall("f", {"a": "s = '</tool_call>'"})]


def test_what_only_looks_like_a_call_is_text_at_the_end() -> None:
    assert read(["a <tool_call>no end"]) == ["a <tool_call>no end"]
    assert read(["<tool_call></tool_call> b"]) == ["<tool_call></tool_call> b"]


def test_arguments_take_the_declared_type_or_stay_text() -> None:
    properties = {"n": {"type": "integer"}, "s": {"type": "string"}, "o": {"type": "object"}, "bad": True}
    writer = CallWriter([Tool("function", FunctionSpec("f", parameters={"properties": properties}))])
    call = ParsedCall("f", {"n": "3", "s": "3", "o": '{"k": [1]}', "bad": "1", "new": "1"})
    assert writer.write(call).arguments == '{"n":3,"s":"3","o":{"k":[1]},"bad":"1","new":"1"}'
    assert writer.write(ParsedCall("f", {"n": "three", "o": "[" * 100_000})).arguments.startswith('{"n":"three"')
    assert writer.write(ParsedCall("other", {"n": "3"})).arguments == '{"n":"3"}'
