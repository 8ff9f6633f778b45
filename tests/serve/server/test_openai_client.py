"""The official client, sync and async, against uvicorn on a port of its own."""

import asyncio
import threading
from collections.abc import Iterator

import httpx
import openai
import pytest
from tokenizers import Tokenizer

from tests.serve.server.builders import make_app, over_http
from tests.serve.server.fake import MODEL, FakeEngine
from tests.serve.server.test_routes import CALL_TEXT, TOOL

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def served(tokenizer: Tokenizer) -> Iterator[tuple[FakeEngine, str]]:
    engine = FakeEngine(tokenizer)
    with over_http(make_app(engine)) as url:
        yield engine, url


@pytest.fixture
def engine(served: tuple[FakeEngine, str]) -> FakeEngine:
    engine = served[0]
    engine.__init__(engine.tokenizer)  # type: ignore[misc]
    return engine


@pytest.fixture
def client(served: tuple[FakeEngine, str]) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=served[1] + "/v1", api_key="none", max_retries=0, timeout=20) as made:
        yield made


def test_chat(engine: FakeEngine, client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, extra_headers={"X-Request-Id": "mine"})
    assert answer.choices[0].message.content == engine.answer
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None and answer.usage.prompt_tokens_details.cached_tokens == 5
    assert answer.id == answer._request_id == "mine"


def test_chat_stream_with_usage(engine: FakeEngine, client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == engine.answer
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens > 0


def test_the_client_s_own_accumulator_reads_streamed_tool_calls(engine: FakeEngine, client: openai.OpenAI) -> None:
    engine.answer = "I look. " + CALL_TEXT
    with client.chat.completions.stream(model=MODEL, messages=MESSAGES, tools=[TOOL]) as stream:
        final = stream.get_final_completion()
    choice = final.choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content == "I look. "
    assert choice.message.tool_calls[0].function.name == "read_file"
    assert choice.message.tool_calls[0].function.arguments == '{"path":"7","first":7,"lines":[1,2]}'


def test_a_tool_session_goes_on_with_what_came_back(engine: FakeEngine, client: openai.OpenAI) -> None:
    engine.answer = CALL_TEXT
    first = client.chat.completions.create(model=MODEL, messages=MESSAGES, tools=[TOOL]).choices[0].message
    history = [*MESSAGES, first.to_dict(), {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "42"}]
    client.chat.completions.create(model=MODEL, messages=history, tools=[TOOL])
    before, after = (request.tokens for request in engine.requests[-2:])
    assert after[: len(before)] == before  # the prefix cache lives from this
    generated = engine.tokenizer.encode(CALL_TEXT, add_special_tokens=False).ids
    assert after[len(before) : len(before) + len(generated)] == tuple(generated)


def test_completions_with_logprobs(engine: FakeEngine, client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt="def", max_tokens=5, logprobs=2, stop="return", seed=3)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset)
    assert engine.requests[-1].sampling.seed == 3
    streamed = list(client.completions.create(model=MODEL, prompt="def", max_tokens=5, stream=True))
    assert "".join(chunk.choices[0].text for chunk in streamed) == answer.choices[0].text
    assert streamed[-1].choices[0].finish_reason == "length"


def test_chat_logprobs(engine: FakeEngine, client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, logprobs=True, top_logprobs=3)
    content = answer.choices[0].logprobs.content
    assert b"".join(bytes(entry.bytes) for entry in content).decode() == engine.answer
    assert len(content[0].top_logprobs) == 3


def test_errors_are_the_client_s_own(engine: FakeEngine, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="gpt-9"):
        client.chat.completions.create(model="gpt-9", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError, match="n: 2 is not supported") as caught:
        client.chat.completions.create(model=MODEL, messages=MESSAGES, n=2)
    assert caught.value.param == "n" and caught.value.code == "unsupported_value"
    with pytest.raises(openai.BadRequestError, match="context length is 2048 tokens"):
        client.completions.create(model=MODEL, prompt="x", max_tokens=3000)
    engine.busy = True
    with pytest.raises(openai.InternalServerError, match="queue is full"):
        client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
    engine.busy = False
    engine.failure, engine.fail_after = RuntimeError("boom"), 3
    with pytest.raises(openai.APIError, match="RuntimeError"):
        list(client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True))
    engine.failure = None
    assert client.models.retrieve(MODEL).id == client.models.list().data[0].id == MODEL


def test_many_async_requests_at_once(engine: FakeEngine, served: tuple[FakeEngine, str]) -> None:
    async def one(client: openai.AsyncOpenAI, number: int) -> str:
        stream = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": str(number)}], stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def story() -> list[str]:
        async with openai.AsyncOpenAI(base_url=served[1] + "/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(one(client, number) for number in range(32)))

    assert asyncio.run(story()) == [engine.answer] * 32
    assert engine.running == {} and engine.aborted == []


@pytest.mark.parametrize("stream", [False, True])
def test_a_closed_connection_aborts(engine: FakeEngine, served: tuple[FakeEngine, str], stream: bool) -> None:
    aborted = threading.Event()
    engine.aborted = Noticed(aborted)
    engine.pause_s = 0.05 if stream else 30
    body = {"model": MODEL, "messages": MESSAGES, "stream": stream, "rid": "left"}
    with httpx.Client(base_url=served[1]) as client:
        if stream:
            with client.stream("POST", "/v1/chat/completions", json=body) as reply:
                next(reply.iter_bytes())  # and away
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post("/v1/chat/completions", json=body, timeout=0.3)
    assert aborted.wait(10) and engine.aborted == ["left"]


class Noticed(list[str]):
    """A list that tells of the first entry."""

    def __init__(self, event: threading.Event) -> None:
        super().__init__()
        self._event = event

    def append(self, item: str) -> None:
        super().append(item)
        self._event.set()


def test_raw_rubbish_on_the_wire_leaves_the_server_alive(engine: FakeEngine, served: tuple[FakeEngine, str]) -> None:
    with httpx.Client(base_url=served[1]) as client:
        for raw in (b"\xff\xfe", b"{", b"[" * 100_000, b'{"messages": NaN}', b'"\\ud800"'):
            reply = client.post("/v1/chat/completions", content=raw)
            assert reply.status_code == 400 and reply.json()["error"]["type"] == "invalid_request_error"

        def chunks() -> Iterator[bytes]:
            yield from [b"x" * 2**20] * 17  # no Content-Length: the limit is found while reading

        assert client.post("/v1/chat/completions", content=chunks()).status_code == 413
        assert client.get("/health").status_code == 200
