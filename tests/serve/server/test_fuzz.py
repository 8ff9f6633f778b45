"""Whatever is sent, the answer is valid or a 4xx, and the server lives on."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from repro.serve.server.chat import checkpoint_text
from tests.serve.server.builders import Reply, chat, make_app, post
from tests.serve.server.fake import FakeEngine

PATHS = ("/v1/chat/completions", "/v1/completions", "/generate", "/abort_request")
ENGINE = FakeEngine(Tokenizer.from_str(checkpoint_text("tokenizer.json")))
APP = make_app(ENGINE)
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])

SPECIALS = ("<|user|>", "<|assistant|>", "</think>", "<tool_call>", "[gMASK]<sop>", "<|endoftext|>", "\ue000", "\x00")
TEXTS = st.one_of(
    st.text(max_size=30),
    st.lists(st.sampled_from(SPECIALS), max_size=4).map("".join),
    st.text("\ud800\udfffa", max_size=4),
)
NUMBERS = st.one_of(
    st.integers(), st.floats(), st.sampled_from([10**400, -(10**400), 2**63, -1, 0, 1e308, float("nan")])
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=12,
)
ROLES = st.sampled_from(["system", "developer", "user", "assistant", "tool"] * 4 + ["function", "", "king"])
ARGUMENTS = st.one_of(TEXTS, VALUES, st.builds(json.dumps, VALUES))
FUNCTIONS = st.fixed_dictionaries({"name": TEXTS, "arguments": ARGUMENTS})
CALLS = st.lists(st.fixed_dictionaries({"function": FUNCTIONS}), max_size=2)
PARTS = st.fixed_dictionaries({"type": st.sampled_from(["text", "text", "image_url"]), "text": TEXTS})
CONTENTS = st.one_of(TEXTS, st.text(max_size=9), st.none(), st.lists(PARTS, max_size=2), VALUES)
MESSAGES = st.fixed_dictionaries(
    {"role": ROLES, "content": CONTENTS}, optional={"tool_calls": CALLS, "name": st.text()}
)
SCHEMAS = st.fixed_dictionaries({"properties": st.dictionaries(TEXTS, VALUES, max_size=2)})
DECLARED = st.fixed_dictionaries(
    {"name": st.sampled_from(["f", "f", "g h", ""])},
    optional={"parameters": st.one_of(SCHEMAS, VALUES), "description": TEXTS},
)
TOOLS = st.fixed_dictionaries({"type": st.just("function"), "function": DECLARED})
FIELDS = {
    "max_tokens": st.one_of(st.integers(-1, 3000), VALUES),
    "temperature": NUMBERS,
    "top_p": NUMBERS,
    "seed": NUMBERS,
    "stop": st.one_of(TEXTS, st.lists(TEXTS, max_size=5), VALUES),
    "stream": st.one_of(st.booleans(), VALUES),
    "stream_options": st.one_of(st.none(), st.fixed_dictionaries({"include_usage": st.booleans()}), VALUES),
    "n": NUMBERS,
    "rid": TEXTS,
    "logit_bias": VALUES,
    "model": st.sampled_from(["fake-glm", "default", "x", 7]),
    "unknown": VALUES,
    "return_cached_tokens_details": st.booleans(),
}
CHAT_FIELDS = FIELDS | {
    "tools": st.lists(TOOLS, max_size=2),
    "logprobs": st.booleans(),
    "top_logprobs": NUMBERS,
    "tool_choice": VALUES,
}
SAMPLING_FIELDS = {"max_new_tokens": NUMBERS, "top_k": NUMBERS, "stop": VALUES, "temperature": NUMBERS}
PROMPTS = st.one_of(TEXTS, st.lists(st.integers(-5, 5000), max_size=5), st.lists(TEXTS, max_size=2), VALUES)
NATIVE_FIELDS = {
    "input_ids": PROMPTS,
    "sampling_params": st.one_of(st.fixed_dictionaries({}, optional=SAMPLING_FIELDS), VALUES),
    "stream": st.booleans(),
    "return_logprob": st.booleans(),
    "top_logprobs_num": NUMBERS,
    "rid": TEXTS,
}


def some_of(fields: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Return up to three of the fields: with more, nearly every body has something wrong."""
    names = st.lists(st.sampled_from(sorted(fields)), max_size=3, unique=True)
    return names.flatmap(lambda chosen: st.fixed_dictionaries({name: fields[name] for name in chosen}))


def check(path: str, raw: bytes, headers: dict[str, str] | None = None) -> Reply:
    """Post, and assert that the answer is one."""
    ENGINE.answer = "x <tool_call>f<arg_key>a</arg_key><arg_value>1</arg_value></tool_call>"
    ENGINE.pause_s = 0.0
    reply = post(APP, path, raw, headers)
    if reply.status == 200:
        if reply.headers["content-type"].startswith("text/event-stream"):
            assert reply.events
        else:
            assert isinstance(reply.json, dict)
    else:
        assert 400 <= reply.status < 500, reply.body
        error = reply.json["error"]
        assert error["message"] and error["type"] == "invalid_request_error" and {"param", "code"} <= error.keys()
    assert ENGINE.running == {} and ENGINE.aborted == []
    return reply


def dumped(body: Any) -> bytes:
    """Return JSON as lax clients write it: NaN, lone surrogates escaped, huge numbers."""
    return json.dumps(body).encode()


@FUZZ
@given(st.sampled_from(PATHS), st.binary(max_size=80))
def test_bytes(path: str, raw: bytes) -> None:
    check(path, raw)


@FUZZ
@given(st.sampled_from(PATHS), VALUES)
def test_any_json(path: str, value: object) -> None:
    check(path, dumped(value))


@FUZZ
@given(st.lists(MESSAGES, min_size=1, max_size=4), some_of(CHAT_FIELDS))
def test_chats(messages: list[object], fields: dict[str, object]) -> None:
    check("/v1/chat/completions", dumped({"messages": messages} | fields))


@FUZZ
@given(PROMPTS, some_of(FIELDS | {"logprobs": NUMBERS, "echo": st.booleans()}))
def test_completions(prompt: object, fields: dict[str, object]) -> None:
    check("/v1/completions", dumped({"prompt": prompt} | fields))


@FUZZ
@given(PROMPTS, some_of(NATIVE_FIELDS))
def test_native(prompt: object, fields: dict[str, object]) -> None:
    check("/generate", dumped({"text": prompt} | fields))


@FUZZ
@given(st.integers(0, 400), st.integers(0, 255))
def test_one_wrong_byte_in_a_good_body(place: int, byte: int) -> None:
    raw = bytearray(dumped(chat("x", tools=[{"type": "function", "function": {"name": "f"}}], stream=True, seed=5)))
    raw[place % len(raw)] = byte
    check("/v1/chat/completions", bytes(raw))


@FUZZ
@given(st.text(st.characters(max_codepoint=255), max_size=200))
def test_request_ids_in_headers(name: str) -> None:
    check("/generate", b'{"text": "x"}', {"X-Request-Id": name})


@pytest.mark.parametrize("depth", [10, 300, 600, 900, 2_000, 100_000])
@pytest.mark.parametrize("nested", ["[", '{"a":'])
def test_deep_nesting_wherever_it_is_allowed(depth: int, nested: str) -> None:
    close = "]" if nested == "[" else "}"
    deep = nested * depth + "1" + close * depth
    tool = '{"type":"function","function":{"name":"f","parameters":{"properties":' + deep + "}}}"
    message = '"messages":[{"role":"user","content":"x"}]'
    call = '{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":{"a":' + deep + "}}}]}"
    text = (
        '{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":'
        + json.dumps('{"a":' + deep + "}")
        + "}}]}"
    )
    for body in (
        deep,
        "{" + message + ',"unknown":' + deep + "}",
        "{" + message + ',"tools":[' + tool + "]}",
        '{"messages":[' + call + "]}",
        '{"messages":[' + text + "]}",
    ):
        check("/v1/chat/completions", body.encode())


def test_a_lone_surrogate_inside_json_text_arguments_is_refused() -> None:
    call = {"function": {"name": "f", "arguments": '{"a": "\\ud800"}'}}
    assert (
        check("/v1/chat/completions", dumped(chat(messages=[{"role": "assistant", "tool_calls": [call]}]))).status
        == 400
    )


def test_a_huge_number_inside_json_text_arguments_is_refused() -> None:
    call = {"function": {"name": "f", "arguments": '{"a": ' + "9" * 10_000 + "}"}}
    assert (
        check("/v1/chat/completions", dumped(chat(messages=[{"role": "assistant", "tool_calls": [call]}]))).status
        == 400
    )
