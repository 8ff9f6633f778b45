"""The client on scripted answers: pieces, counts, and every way in which a server can disappoint."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from repro.base.clock import run_virtual
from repro.base.errors import TargetError, UsageError
from repro.load.answer import Answer
from repro.load.asgi import App, AsgiStreamTransport
from repro.load.client import Ask, ChatClient, open_client
from repro.load.exchange import Close, Pause
from repro.load.transport import PushTransport
from repro.load.wire import Api, Piece
from repro.record.requests import SpecCounts
from tests.idle import IdleWorld
from tests.load.stubs import ChatStub, chunked, delta, event, meta, read_request, sending, tcp_server, usage

MESSAGE = json.dumps({"role": "user", "content": "say"}).encode()
DONE = b"data: [DONE]\n\n"


def ask_of(max_tokens: int = 5, **changes: Any) -> Ask:
    return Ask("r-1", (MESSAGE,), max_tokens, **changes)


def opened(app: App, **options: Any) -> ChatClient:
    return open_client("http://stub", transport=AsgiStreamTransport(app), **options)


async def asked(client: ChatClient, ask: Ask | None = None, watch: Any = lambda answer, piece: None) -> Answer:
    answer = Answer()
    async with client.http:
        await client.ask(ask or ask_of(), watch, answer)
    return answer


def answer_of(*chunks: bytes, api: Api = "chat", **head: Any) -> Answer:
    return run_virtual(asked(opened(sending(*chunks, **head), api=api)), IdleWorld())


def test_text_counts_and_times_of_a_good_answer() -> None:
    client = opened(ChatStub(token_s=0.01, prefill_s=0.05))
    answer = run_virtual(asked(client), IdleWorld())
    assert (answer.text, answer.finish, answer.error) == ("w0 w1 w2 w3 w4 ", "stop", "")
    assert answer.counts is not None and answer.counts.completion_tokens == 5
    assert answer.first_s - answer.sent_s == pytest.approx(0.05)
    assert answer.finished_s - answer.first_s == pytest.approx(0.05)
    assert client.ttft.summary().max_s == pytest.approx(0.05)
    assert client.gaps.summary().count == 4
    assert client.gaps.summary().p50_s == pytest.approx(0.01, rel=0.05)


def test_the_request_is_what_openai_servers_expect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret\n")
    stub = ChatStub()
    client = opened(stub, extra={"return_cached_tokens_details": True})
    client.model = "glm"
    run_virtual(asked(client, ask_of(tools=b'[{"type":"function"}]')), IdleWorld())
    body, headers = stub.bodies[0], stub.headers[0]
    assert body == {
        "model": "glm",
        "max_tokens": 5,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.0,
        "return_cached_tokens_details": True,
        "messages": [{"role": "user", "content": "say"}],
        "tools": [{"type": "function"}],
    }
    assert headers[b"authorization"] == b"Bearer secret"
    assert (headers[b"x-request-id"], headers[b"accept-encoding"]) == (b"r-1", b"identity")


def test_characters_and_events_cut_anywhere_come_out_whole() -> None:
    stream = delta("naïve ") + delta("日本語 🙂", finish="stop") + usage() + DONE
    raw = stream.replace(json.dumps("naïve ").encode(), '"naïve "'.encode())
    raw = raw.replace(json.dumps("日本語 🙂").encode(), '"日本語 🙂"'.encode())
    for size in (1, 2, 3, 7, 1000):
        answer = answer_of(*(raw[at : at + size] for at in range(0, len(raw), size)))
        assert (answer.text, answer.finish, answer.error) == ("naïve 日本語 🙂", "stop", "")


def test_tool_calls_grow_and_are_rendered() -> None:
    def call(index: int, **function: str) -> bytes:
        return delta(tool_calls=[{"index": index, "id": f"c{index}", "function": function}])

    answer = answer_of(
        delta("I look. "), call(0, name="read"), call(0, arguments='{"path":'), call(0, arguments=' "a"}'),
        call(1, name="run", arguments="{}"), delta(finish="tool_calls"), usage(), DONE,
    )  # fmt: skip
    assert [(call.id, call.name, call.arguments) for call in answer.calls] == [
        ("c0", "read", '{"path": "a"}'),
        ("c1", "run", "{}"),
    ]
    assert answer.text == 'I look. \n[call read] {"path": "a"}\n[call run] {}'
    assert (answer.content, answer.finish) == ("I look. ", "tool_calls")


def test_reasoning_is_shown_to_the_watch_and_kept_out_of_the_history() -> None:
    answer = answer_of(delta(reasoning_content="hm "), delta("yes", finish="stop"), DONE)
    assert (answer.text, answer.content) == ("hm yes", "yes")


def test_cached_tokens_are_told_by_tier_where_the_server_knows() -> None:
    by_tier = event(choices=[], sglext={"cached_tokens_details": {"device": 64, "host": 128}})
    total = event(
        choices=[],
        usage={"prompt_tokens": 200, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 192}},
    )
    counts = answer_of(delta("x", finish="stop"), by_tier, total, DONE).counts
    assert counts is not None
    assert (counts.cached_tokens, counts.cached_device_tokens, counts.cached_host_tokens) == (192, 64, 128)
    counts = answer_of(delta("x", finish="stop"), total, DONE).counts
    assert counts is not None and (counts.cached_tokens, counts.cached_host_tokens) == (192, None)


@pytest.mark.parametrize("cumulative", [True, False])
def test_generate_gives_increments_however_the_server_counts(cumulative: bool) -> None:
    def chunk(number: int, finish: dict[str, str] | None = None) -> bytes:
        ids = list(range(number)) if cumulative else [number - 1]
        text = "ab" * number if cumulative else "ab"
        logprobs = [[-0.5, token, None] for token in ids]
        meta = {
            "completion_tokens": number,
            "prompt_tokens": 7,
            "cached_tokens": 4,
            "cached_tokens_details": {"device": 1, "host": 3},
        }
        meta |= {"finish_reason": finish, "output_token_logprobs": logprobs}
        return event(text=text, output_ids=ids, meta_info=meta)

    answer = answer_of(chunk(1), chunk(2), chunk(3, {"type": "length"}), DONE, api="generate")
    assert (answer.text, answer.tokens, answer.logprobs) == ("ababab", [0, 1, 2], [-0.5] * 3)
    assert answer.finish == "length"
    assert answer.counts is not None and answer.counts.cached_host_tokens == 3


def test_completions_take_the_messages_as_plain_text() -> None:
    seen: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(json.loads((await receive())["body"]))
        await sending(event(choices=[{"text": "hi", "finish_reason": "stop"}]), DONE)(scope, receive, send)

    answer = run_virtual(asked(opened(app, api="completions")), IdleWorld())
    assert answer.text == "hi" and seen[0]["prompt"] == "<|user|>\nsay\n<|assistant|>\n"


@pytest.mark.parametrize(
    ("chunks", "head", "kind", "said"),
    [
        ((b'{"error":{"message":"no such model"}}',), {"status": 404}, "rejected", "404: no such model"),
        ((b'{"error":{"message":"shorten it","code":"context_length_exceeded"}}',), {"status": 400}, "rejected",
         "400: shorten it (context_length_exceeded)"),
        ((b'{"detail":"slow down"}',), {"status": 429}, "busy", "429: slow down"),
        ((b"upstream is down",), {"status": 502}, "server", "502: upstream is down"),
        ((b"",), {"status": 500}, "server", "(no text)"),
        ((delta("x"), event(error={"message": "engine died"})), {}, "server", "its stream: engine died"),
        ((delta("x"), b"data: {not json\n\n"), {}, "malformed", "{not json"),
        ((delta("x"), b'data: {"choices": 7}\n\n'), {}, "malformed", "Expected `array`"),
        ((b'{"choices":[]}',), {"content_type": b"application/json"}, "malformed", "sent application/json"),
        ((delta("x"),), {}, "died", "without a finish_reason"),
        ((), {}, "died", "without a finish_reason"),
    ],
)  # fmt: skip
def test_what_a_server_does_wrong_is_told_by_kind(
    chunks: tuple[bytes, ...], head: dict[str, Any], kind: str, said: str
) -> None:
    answer = answer_of(*chunks, **head)
    assert (answer.finish, answer.error_kind) == ("error", kind)
    assert said in answer.error
    assert answer.text == ("x" if delta("x") in chunks else "")


def test_an_app_that_crashes_is_a_500_before_its_head_and_a_death_after_it() -> None:
    async def crash(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("boom")

    answer = run_virtual(asked(opened(crash)), IdleWorld())
    assert (answer.error_kind, answer.error) == ("server", "the server answered 500: Internal Server Error")
    crashing = json.dumps({"role": "user", "content": "crash"}).encode()
    answer = run_virtual(asked(opened(ChatStub()), Ask("r", (crashing,), 5)), IdleWorld())
    assert (answer.error_kind, answer.text) == ("died", "w0 w1 ")


def test_the_first_chunk_is_seen_before_the_last_is_produced() -> None:
    seen_at: list[float] = []

    async def main() -> float:
        loop = asyncio.get_running_loop()
        stub = ChatStub(token_s=1.0, prefill_s=0.0)
        await asked(opened(stub), ask_of(4), lambda answer, piece: seen_at.append(loop.time()))
        return loop.time()

    assert run_virtual(main(), IdleWorld()) == pytest.approx(4.0)
    assert seen_at[:4] == pytest.approx([0.0, 1.0, 2.0, 3.0])


def test_a_watch_that_closes_disconnects_the_app_at_that_token() -> None:
    def watch(answer: Answer, piece: Piece) -> Close | None:
        return Close() if answer.pieces == 3 else None

    async def main() -> tuple[Answer, ChatStub]:
        stub = ChatStub()
        answer = await asked(opened(stub), ask_of(100), watch)
        await asyncio.sleep(1)
        return answer, stub

    answer, stub = run_virtual(main(), IdleWorld())
    assert answer.text == "w0 w1 w2 "
    assert stub.disconnects == [("r-1", 3)] and stub.active == 0


@pytest.mark.parametrize(("after_s", "text"), [(0.02, ""), (0.085, "w0 w1 w2 w3 ")])
def test_an_impatient_client_gives_up_before_or_after_the_first_token(after_s: float, text: str) -> None:
    async def main() -> tuple[Answer, ChatStub]:
        stub = ChatStub(token_s=0.01, prefill_s=0.05)
        answer = await asked(opened(stub), ask_of(100, abort_after_s=after_s))
        await asyncio.sleep(1)
        return answer, stub

    answer, stub = run_virtual(main(), IdleWorld())
    assert (answer.finish, answer.text) == ("abort", text)
    assert answer.finished_s - answer.sent_s == pytest.approx(after_s)
    assert len(stub.disconnects) == 1 and stub.active == 0


def test_an_answer_that_never_ends_is_given_up() -> None:
    answer = answer_of(*[delta("x")] * 1000)
    assert answer.error_kind == "malformed" and "no end" in answer.error
    assert len(answer.text) == 4 * 5 + 256 + 1


def test_a_slow_reader_makes_the_app_wait() -> None:
    async def main() -> float:
        await asked(opened(ChatStub(token_s=0.0, prefill_s=0.0)), ask_of(10), lambda answer, piece: Pause(1.0))
        return asyncio.get_running_loop().time()

    assert run_virtual(main(), IdleWorld()) == pytest.approx(10.0, abs=1.1)


def test_a_server_that_says_nothing_times_out() -> None:
    client = opened(ChatStub(prefill_s=1000.0), read_timeout_s=30.0)
    answer = run_virtual(asked(client), IdleWorld())
    assert (answer.error_kind, answer.error) == ("timeout", "nothing was received for 30 s")
    assert answer.finished_s == pytest.approx(30.0)


def test_the_same_answers_come_through_any_httpx_transport() -> None:
    async def main() -> None:
        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while True:
                await read_request(reader)
                writer.write(chunked(delta("hel"), delta("lo", finish="stop"), usage(), DONE))

        async with tcp_server(script) as url:
            for transport in (PushTransport(), httpx.AsyncHTTPTransport()):
                answer = await asked(open_client(url, transport=transport))
                assert (answer.text, answer.finish, answer.error) == ("hello", "stop", "")
                answer = await asked(open_client(url), watch=lambda answer, piece: Close())
                assert answer.text == "hel"
        answer = await asked(open_client(url))
        assert answer.error_kind == "refused" and "Is the server running there?" in answer.error

    asyncio.run(main())


def test_a_huge_event_passes_and_is_not_split() -> None:
    text = "x" * 3_000_000
    assert answer_of(delta(text, finish="stop"), DONE).text == text


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://", "http://[::1", "no url"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="something like http://127.0.0.1:8000"):
        open_client(url)


@pytest.mark.parametrize("url", ["http://stub", "http://stub/", "http://stub/v1", "http://stub/v1/"])
def test_a_base_url_with_or_without_v1_works(url: str) -> None:
    async def main() -> tuple[str, int | None]:
        client = open_client(url, transport=AsgiStreamTransport(ChatStub()))
        facts = await client.facts()
        return facts.model, facts.context_tokens_max

    assert run_virtual(main(), IdleWorld()) == ("stub", 4096)


@pytest.mark.parametrize(
    ("chunks", "head", "said"),
    [
        ((b'{"error":{"message":"bad key"}}',), {"status": 401}, "answered 401: bad key"),
        ((b"<html>",), {}, "no list of models"),
        ((b'{"data":[]}',), {}, "no list of models"),
        ((b"[]",), {}, "no list of models"),
    ],
)
def test_a_server_without_models_is_named(chunks: tuple[bytes, ...], head: dict[str, Any], said: str) -> None:
    with pytest.raises(TargetError, match=said):
        run_virtual(opened(sending(*chunks, **head)).facts(), IdleWorld())


def test_an_app_still_running_is_told_when_the_transport_closes() -> None:
    async def main() -> ChatStub:
        stub = ChatStub()
        client = opened(stub)
        task = asyncio.create_task(client.ask(ask_of(1000), lambda answer, piece: None, Answer()))
        await asyncio.sleep(0.2)
        await client.http.aclose()
        await task
        return stub

    stub = run_virtual(main(), IdleWorld())
    assert stub.active == 0 and len(stub.disconnects) == 1


def test_counts_of_speculative_decoding_arrive_with_the_pieces() -> None:
    seen: list[SpecCounts | None] = []

    def watch(answer: Answer, piece: Piece) -> None:
        seen.append(piece.spec)

    chunks = (delta("a", meta_info=meta(3, 1, 2, 3)), delta("b"), delta(finish="stop", meta_info=meta(6, 2, 4, 6)))
    answer = run_virtual(asked(opened(sending(*chunks, usage(), DONE)), watch=watch), IdleWorld())
    assert seen == [SpecCounts(3, 1, 2, 3), None, SpecCounts(6, 2, 4, 6), None]
    assert (answer.spec, answer.text, answer.finish) == (SpecCounts(6, 2, 4, 6), "ab", "stop")


def test_generate_tells_them_in_its_meta_info_too() -> None:
    said = event(text="a b", output_ids=[5, 6], meta_info={**meta(2, 1, 1, 3), "finish_reason": {"type": "stop"}})
    assert answer_of(said, DONE, api="generate").spec == SpecCounts(2, 1, 1, 3)


@pytest.mark.parametrize("told", [{}, {"completion_tokens": 4}, {"spec_verify_ct": 2}, {"spec_verify_ct": None}])
def test_meta_info_without_all_counts_tells_none(told: dict[str, Any]) -> None:
    answer = answer_of(event(choices=[], meta_info=told), delta("a", finish="stop"), DONE)
    assert (answer.spec, answer.text) == (None, "a")
