"""Messages to tokens and text to tool calls."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from repro.serve.server.chat import ChatEncoder, ChatError, bundled_encoder, checkpoint_text, render
from repro.serve.server.toolcalls import parse

SPECIALS = (
    "<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>", "</think>",
    "<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>",
)  # fmt: skip
TOOL = {"type": "function", "function": {"name": "read_file", "parameters": {"type": "object"}}}

# Text in which control tokens, their halves and the encoder's own mark are likely.
awkward = st.lists(
    st.one_of(st.sampled_from(SPECIALS), st.sampled_from("<>[|\ue000\n /\té你"), st.text(max_size=5))
).map("".join)


@pytest.fixture(scope="module")
def encoder() -> ChatEncoder:
    return bundled_encoder()


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def call(name: str, **arguments: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}


def test_the_prompt_is_glm5s_with_thinking_off() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        user("Open a.py"),
        {"role": "assistant", "content": None, "tool_calls": [call("read_file", path="a.py")]},
        {"role": "tool", "content": "x = 1"},
        {"role": "tool", "content": "y = 2"},
        {"role": "assistant", "content": "    x = 1\n"},
    ]
    assert render(messages, [TOOL]) == (
        "[gMASK]<sop><|system|>\n# Tools\n<tools>\n"
        '{"type": "function", "function": {"name": "read_file", "parameters": {"type": "object"}}}\n</tools>'
        "<|system|>Be brief.<|user|>Open a.py"
        "<|assistant|></think><tool_call>read_file<arg_key>path</arg_key><arg_value>a.py</arg_value></tool_call>"
        "<|observation|><tool_response>x = 1</tool_response><tool_response>y = 2</tool_response>"
        "<|assistant|></think>    x = 1\n<|assistant|></think>"
    )


def test_a_list_of_text_parts_is_one_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert render([{"role": "user", "content": parts}], add_generation_prompt=False).endswith("<|user|>ab")


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ({"role": "robot", "content": "x"}, "messages[0].role"),
        ({"role": "user", "content": 3}, "messages[0].content"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}, "no JSON"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}, "object"),
    ],
)
def test_a_message_without_a_place_is_refused_by_name(message: dict[str, Any], says: str) -> None:
    with pytest.raises(ChatError, match=says.replace("[", r"\[")):
        render([message])


@given(awkward)
@settings(max_examples=200, deadline=None)
def test_text_of_a_message_never_becomes_a_control_token(text: str) -> None:
    encoder = bundled_encoder()
    controls = {encoder.special_id(token) for token in SPECIALS}
    ids = encoder.encode_chat([user(text)])
    assert [id for id in ids if id in controls] == [
        encoder.special_id(token) for token in ("[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "</think>")
    ]
    assert encoder.decode(ids) == f"[gMASK]<sop><|user|>{text}<|assistant|></think>"


@given(awkward, awkward)
@settings(max_examples=100, deadline=None)
def test_tool_calls_and_tools_carry_text_too(name: str, value: str) -> None:
    encoder = bundled_encoder()
    messages = [{"role": "assistant", "content": "", "tool_calls": [call("f", **{"k": value})]}]
    tool = {"type": "function", "function": {"name": name, "parameters": {name: [value]}}}
    ids = encoder.encode_chat(messages, [tool])
    assert encoder.decode(ids) == render(messages, [tool])
    assert ids.count(encoder.special_id("<tool_call>")) == 1
    assert ids.count(encoder.special_id("<|system|>")) == 1


@given(awkward)
@settings(max_examples=200, deadline=None)
def test_lines_encode_as_the_whole_text_does(text: str) -> None:
    whole = Tokenizer.from_str(checkpoint_text("tokenizer.json"))
    whole.encode_special_tokens = True
    assert bundled_encoder().encode_text(text) == whole.encode(text).ids


def test_the_generation_prompt_and_answer_are_a_prefix_of_the_next_turn(encoder: ChatEncoder) -> None:
    history = [user("Open a.py")]
    prompt = encoder.encode_chat(history)
    answer = {"role": "assistant", "content": "def f():\n    return 1"}
    later = encoder.encode_chat([*history, answer, user("More")])
    assert later[: len(prompt)] == prompt
    generated = encoder.encode_text(answer["content"])
    assert later[len(prompt) : len(prompt) + len(generated) + 1] == [*generated, encoder.special_id("<|user|>")]


def test_arguments_that_hold_lists_and_brackets_survive() -> None:
    arguments = json.dumps({"paths": ["a", "<|user|>"], "text": "[gMASK]"})
    messages = [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}]
    ids = bundled_encoder().encode_chat(messages)
    assert bundled_encoder().decode(ids) == render(messages)
    assert '<arg_value>["a", "<|user|>"]</arg_value>' in render(messages)
    assert bundled_encoder().special_id("<|user|>") not in ids


plain = st.text(st.characters(exclude_characters="<>", exclude_categories=["Cs"]), max_size=20)
names = st.from_regex(r"[a-z_]{1,12}", fullmatch=True)


@given(plain, st.lists(st.tuples(names, st.dictionaries(names, plain, max_size=3)), max_size=3))
@settings(max_examples=200, deadline=None)
def test_parse_is_the_inverse_of_render(content: str, calls: list[tuple[str, dict[str, str]]]) -> None:
    message = {"role": "assistant", "content": content, "tool_calls": [call(name, **args) for name, args in calls]}
    text = render([message], add_generation_prompt=False).removeprefix("[gMASK]<sop><|assistant|></think>")
    found_content, found = parse(text)
    assert found_content == content
    assert [(one.name, one.arguments) for one in found] == calls


@given(awkward)
@settings(max_examples=300, deadline=None)
def test_parse_loses_nothing_of_garbage(text: str) -> None:
    content, calls = parse(text)
    assert text.startswith(content)
    if not calls:
        assert content == text


@pytest.mark.parametrize(
    "text",
    ["<tool_call>", "<tool_call></tool_call>", "<tool_call>f<arg_key>k</arg_key></tool_call>",
     "<tool_call>f</tool_call> and more", "<tool_call>f<arg_key>k</arg_key><arg_value>v</tool_call>"],
)  # fmt: skip
def test_a_malformed_call_stays_content(text: str) -> None:
    assert parse(text) == (text, ())


def test_newlines_between_the_tags_as_glm45_writes_them_are_read() -> None:
    text = "ok<tool_call>f\n<arg_key>k</arg_key>\n<arg_value> v\n</arg_value>\n</tool_call>\n"
    content, calls = parse(text)
    assert (content, calls[0].name, calls[0].arguments) == ("ok", "f", {"k": " v\n"})


def test_parsing_many_unclosed_tags_takes_linear_time() -> None:
    text = "<tool_call>f" + "<arg_key>a</arg_key><arg_value>b</arg_value>" * 20_000
    assert parse(text) == (text, ())
