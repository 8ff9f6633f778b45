"""The engine in its own thread, with a virtual clock there and a real one here."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer

from repro.base.clock import VirtualLoop
from repro.serve.server.app import create_app
from repro.serve.server.bridge import BridgedEngine, EngineThread, HostedEngine
from repro.serve.server.channel import Channel
from repro.serve.server.errors import EngineFailedError
from repro.serve.types import GenerateRequest, RejectedError, SamplingParams, Update
from tests.idle import IdleWorld
from tests.serve.server.builders import chat, over_http
from tests.serve.server.fake import MODEL, FakeEngine

REQUEST = GenerateRequest("r", (30, 31), SamplingParams(max_tokens=2000))


async def forever() -> None:
    await asyncio.Event().wait()


@contextmanager
def bridged(engine: FakeEngine, run: Callable[[], Any] = forever) -> Iterator[tuple[BridgedEngine, EngineThread]]:
    """Run the engine in a thread, in virtual time."""
    thread = EngineThread(lambda: HostedEngine(VirtualLoop(IdleWorld(), external=True), engine, run))
    try:
        yield thread.start(), thread
    finally:
        assert thread.stop(10)


async def text_of(updates: AsyncIterator[Update]) -> str:
    return "".join([update.text async for update in updates])


async def until(condition: Callable[[], bool]) -> None:
    """Let both loops turn until the condition holds."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


def test_updates_cross_in_order_and_an_hour_of_virtual_time_costs_nothing(engine: FakeEngine) -> None:
    engine.pause_s = 3600.0

    async def story(bridge: BridgedEngine) -> list[str]:
        asked = [GenerateRequest(f"r{n}", (30,), SamplingParams(max_tokens=64)) for n in range(20)]
        return await asyncio.gather(*(text_of(bridge.generate(request)) for request in asked))

    with bridged(engine) as (bridge, _):
        assert asyncio.run(story(bridge)) == [engine.answer] * 20
        assert bridge.served.name == MODEL and bridge.stats().steps_total == 77
    assert engine.aborted == [] and engine.running == {}


def test_a_refusal_crosses_with_its_status(engine: FakeEngine) -> None:
    engine.busy = True
    with bridged(engine) as (bridge, _), pytest.raises(RejectedError, match="queue is full") as caught:
        asyncio.run(text_of(bridge.generate(REQUEST)))
    assert caught.value.status == 503


def test_a_closed_iterator_aborts_in_the_engine_s_thread(engine: FakeEngine) -> None:
    async def story(bridge: BridgedEngine) -> None:
        updates = bridge.generate(REQUEST)
        await anext(updates)
        await updates.aclose()
        await until(lambda: engine.aborted == ["r"])

    engine.answer = "x = 1\n" * 300  # more updates than the channel holds, so it can't have finished
    with bridged(engine) as (bridge, _):
        asyncio.run(story(bridge))
    assert engine.running == {}


def test_an_abort_right_after_the_submission_finds_the_request(engine: FakeEngine) -> None:
    engine.gate = asyncio.Event  # nobody sets it: only the abort ends the request

    async def story(bridge: BridgedEngine) -> Update:
        updates = bridge.generate(REQUEST)
        first = asyncio.ensure_future(anext(updates))
        await asyncio.sleep(0)  # submitted, and the engine's thread may not have seen it yet
        bridge.abort("r")
        bridge.abort("never heard of")
        async with asyncio.timeout(10):
            last = await first
        assert [update async for update in updates] == []
        return last

    with bridged(engine) as (bridge, _):
        assert asyncio.run(story(bridge)).finish == "abort"


def test_a_reader_that_does_not_read_holds_the_engine_s_task_back(engine: FakeEngine) -> None:
    async def story() -> list[int]:
        loop = asyncio.get_running_loop()
        channel: Channel[int] = Channel(loop, loop, items_max=3)
        put: list[int] = []

        async def write() -> None:
            for number in range(10):
                await channel.put(number)
                put.append(number)

        writer = asyncio.ensure_future(write())
        await asyncio.sleep(0.01)
        assert put == [0, 1, 2]
        read = [await channel.get() for _ in range(10)]
        await writer
        channel.fail(EngineFailedError("over"))
        with pytest.raises(EngineFailedError, match="over"):
            await channel.get()
        return read

    assert asyncio.run(story()) == list(range(10))


def test_flush_cache_crosses(engine: FakeEngine) -> None:
    with bridged(engine) as (bridge, _):
        assert asyncio.run(bridge.flush_cache()) is True


def test_a_dying_engine_fails_open_and_later_requests(engine: FakeEngine, caplog: pytest.LogCaptureFixture) -> None:
    die = threading.Event()

    async def run() -> None:
        while not die.is_set():
            await asyncio.sleep(1.0)
        raise RuntimeError("invariant broken: page 7")

    async def story(bridge: BridgedEngine) -> None:
        engine.gate = asyncio.Event  # nobody ever sets it: the request hangs in the engine
        waiting = [asyncio.ensure_future(text_of(bridge.generate(REQUEST)))]
        await until(lambda: "r" in engine.running)
        assert bridge.is_alive
        die.set()
        for task in waiting:
            with pytest.raises(EngineFailedError, match="RuntimeError: invariant broken: page 7"):
                await task
        assert not bridge.is_alive
        with pytest.raises(EngineFailedError, match="page 7"):
            await text_of(bridge.generate(REQUEST))
        with pytest.raises(EngineFailedError):
            await bridge.flush_cache()
        bridge.abort("r")

    with bridged(engine, run) as (bridge, _):
        asyncio.run(story(bridge))
    assert "the engine has failed" in caplog.text


def test_a_main_loop_that_returns_has_failed_too(engine: FakeEngine) -> None:
    async def run() -> None:
        return

    async def story(bridge: BridgedEngine) -> None:
        await until(lambda: not bridge.is_alive)
        with pytest.raises(EngineFailedError, match="ended by itself"):
            await text_of(bridge.generate(REQUEST))

    with bridged(engine, run) as (bridge, _):
        asyncio.run(story(bridge))


def test_a_factory_that_fails_is_raised_by_start() -> None:
    def factory() -> HostedEngine:
        raise FileNotFoundError("model.safetensors")

    with pytest.raises(FileNotFoundError, match="model.safetensors"):
        EngineThread(factory).start()


def test_health_answers_while_the_engine_computes_and_503_when_it_is_dead(tokenizer: Tokenizer) -> None:
    engine = FakeEngine(tokenizer)
    step, computing, die = threading.Event(), threading.Event(), threading.Event()

    async def run() -> None:
        while not computing.is_set():
            await asyncio.sleep(1.0)
        step.wait(10)  # a step: nothing else runs in the engine's loop meanwhile
        while not die.is_set():
            await asyncio.sleep(1.0)
        raise RuntimeError("boom")

    with bridged(engine, run) as (bridge, _):
        app = create_app(bridge, tokenizer, clock=lambda: 0.0, is_alive=lambda: bridge.is_alive)
        with over_http(app) as url, httpx.Client(base_url=url, timeout=10) as client:
            computing.set()
            assert client.get("/health").status_code == 200
            assert client.get("/metrics").status_code == 200
            step.set()
            assert client.post("/v1/chat/completions", json=chat()).status_code == 200
            asyncio.run(_deaths(url, engine, die))


async def _deaths(url: str, engine: FakeEngine, die: threading.Event) -> None:
    """A whole answer that waits, a stream under way, and whoever comes later: each is told."""
    async with httpx.AsyncClient(base_url=url, timeout=10) as client:
        engine.pause_s, engine.answer = 0.0, "x = 1\n" * 500
        async with client.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as stream:
            pieces = stream.aiter_text()
            await anext(pieces)
            engine.gate = asyncio.Event  # one of its own for each request, which nobody ever sets
            waiting = asyncio.ensure_future(client.post("/v1/chat/completions", json=chat(rid="waits")))
            await until(lambda: "waits" in engine.running)
            die.set()
            reply = await waiting
            rest = "".join([piece async for piece in pieces])
        assert reply.status_code == 500 and reply.json()["error"]["code"] == "engine_failed"
        assert "boom" in reply.json()["error"]["message"]
        assert rest.endswith("[DONE]\n\n") or '"code":"engine_failed"' in rest
        assert (await client.get("/health")).status_code == 503
        late = await client.post("/v1/completions", json={"prompt": "x", "stream": True})
        assert late.status_code == 500 and late.json()["error"]["code"] == "engine_failed"
        assert (await client.post("/flush_cache")).status_code == 500
