"""The bundled engine behind the bridge and real HTTP. Stamps instead of tensors: the order is what counts."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import openai
import pytest

from repro.base.clock import VirtualLoop
from repro.serve.config import EngineConfig
from repro.serve.device.sim import SimDevice
from repro.serve.engine import Engine, checkpoint_folder, load
from repro.serve.server.app import create_app
from repro.serve.server.bridge import EngineThread, HostedEngine
from repro.serve.server.chat import ChatEncoder, checkpoint_text
from tests.serve.server.builders import over_http

CONFIG = EngineConfig(numerics="stamps", context_tokens=4096, waiting_max=64)
MESSAGES = [{"role": "user", "content": "def answer():\n    return 42\n" * 40}]


@contextmanager
def served(tokenizer: object) -> Iterator[tuple[str, Engine]]:
    encoder = ChatEncoder(checkpoint_text("tokenizer.json"))
    made: list[Engine] = []

    def factory() -> HostedEngine:
        device = SimDevice()
        made.append(Engine(CONFIG, load(CONFIG, encoder.decode), device))
        return HostedEngine(VirtualLoop(device, external=True), made[0], made[0].run)

    thread = EngineThread(factory)
    bridge = thread.start()
    app = create_app(bridge, tokenizer, clock=lambda: 0.0, is_alive=lambda: bridge.is_alive)  # type: ignore[arg-type]
    with over_http(app) as url:
        yield url, made[0]
    assert bridge.is_alive, "the engine died under load"
    assert thread.stop(20)


def test_concurrent_clients_aborts_and_a_flush(tokenizer: object) -> None:
    async def ask(client: openai.AsyncOpenAI, number: int) -> tuple[int, int]:
        stream = await client.chat.completions.create(
            model="default", messages=MESSAGES, stream=True, max_tokens=200, seed=number,
            stream_options={"include_usage": True}, extra_body={"ignore_eos": True},
        )  # fmt: skip
        seen = 0
        async for chunk in stream:
            seen += 1
            if number % 4 == 3 and seen == 5:
                await stream.close()
                return -1, -1
            usage = chunk.usage
        assert usage is not None and usage.prompt_tokens_details is not None
        return usage.completion_tokens, usage.prompt_tokens_details.cached_tokens or 0

    async def story(url: str) -> list[tuple[int, int]]:
        async with openai.AsyncOpenAI(base_url=url + "/v1", api_key="none", max_retries=0, timeout=60) as client:
            first = await ask(client, 0)
            answers = await asyncio.gather(*(ask(client, number) for number in range(16)))
            again = await ask(client, 0)
            for _ in range(100):  # aborted requests leave at the engine's next step
                flushed = await client.with_options(max_retries=0)._client.post(url + "/flush_cache")
                if flushed.status_code == 200:
                    break
            assert flushed.status_code == 200
            return [first, *answers, again]

    with served(tokenizer) as (url, engine):
        first, *rest = asyncio.run(story(url))
        assert first == (200, 0), "nothing was cached for the first request"
        assert [tokens for tokens, _ in rest].count(200) == 13 and all(
            cached > 0 for tokens, cached in rest if tokens > 0
        )
        stats = engine.stats()
        assert (stats.running_requests, stats.waiting_requests, stats.device_used) == (0, 0, 0)


def test_the_bundled_tokenizer_folder_is_the_one_the_engine_names() -> None:
    assert (checkpoint_folder(CONFIG) / "tokenizer.json").read_text(encoding="utf-8") == checkpoint_text(
        "tokenizer.json"
    )


def test_too_long_a_prompt_is_refused_with_the_numbers(tokenizer: object) -> None:
    with served(tokenizer) as (url, _), openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.BadRequestError, match="4096 tokens") as caught:
            client.completions.create(model="default", prompt=[30] * 4090, max_tokens=7)
        assert caught.value.code == "context_length_exceeded"
        with pytest.raises(openai.BadRequestError, match="token ids must be between"):
            client.completions.create(model="default", prompt=[4_000_000], max_tokens=7)
