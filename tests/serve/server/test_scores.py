"""What the server tells of a prompt: SGLang's prompt log-probabilities, its tokens, and a cache of one's own."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import msgspec
import pytest
import torch

from repro.base.clock import run_virtual
from repro.load.asgi import AsgiStreamTransport
from repro.load.client import open_client
from repro.run.checkpoint import load_checkpoint
from repro.serve.config import EngineConfig
from repro.serve.device.sim import SimDevice
from repro.serve.server.app import create_app
from repro.serve.stack import build
from tests.serve.server.builders import make_app, post
from tests.serve.server.fake import FakeEngine

CONFIG = EngineConfig(device_pages=64, host_pages=64, context_tokens=1024, rows=4, chunk_tokens=96)
PROMPT = "def add(first, second):\n    return first + second\n" * 12
GREEDY = {"temperature": 0, "max_new_tokens": 8}
Post = Callable[[str, dict[str, Any]], Awaitable[Any]]


def with_server(story: Callable[[Post], Awaitable[None]], config: EngineConfig = CONFIG) -> None:
    """Let `story` post to the bundled stack, in virtual time."""
    torch.set_num_threads(1)
    device = SimDevice()
    checkpoint = load_checkpoint(config)

    async def serve() -> None:
        engine = build(config, checkpoint.model, device)
        app = create_app(engine, checkpoint.tokenizer, clock=asyncio.get_running_loop().time)
        http = open_client("http://stack", transport=AsgiStreamTransport(app), read_timeout_s=None).http

        async def send(path: str, body: dict[str, Any]) -> Any:
            response: httpx.Response = await http.post(path, json=body)
            assert response.status_code == 200, response.text
            return response.json()

        running = asyncio.create_task(engine.run())
        await story(send)
        engine.stop()
        await running

    with torch.inference_mode():
        run_virtual(serve(), device)


def scores(reply: Any) -> list[tuple[float | None, int]]:
    return [(logprob, token) for logprob, token, _ in reply["meta_info"]["input_token_logprobs"]]


@pytest.mark.parametrize("drafts", [0, 3])
def test_an_answer_sent_back_is_as_likely_as_when_it_was_given(drafts: int) -> None:
    async def story(send: Post) -> None:
        asked = {"sampling_params": GREEDY, "return_logprob": True, "top_logprobs_num": 2}
        prompt = (await send("/tokenize", {"prompt": PROMPT}))["tokens"]
        answer = await send("/generate", {"text": PROMPT, **asked})
        given = [(logprob, token) for logprob, token, _ in answer["meta_info"]["output_token_logprobs"]]
        back = {"input_ids": prompt + answer["output_ids"], "logprob_start_len": len(prompt) - 1, **asked}
        reply = await send("/generate", back)
        assert scores(reply) == [(None, prompt[-1]), *given]
        tops = reply["meta_info"]["input_top_logprobs"]
        assert tops[0] is None and [top[0][:2] for top in tops[1:]] == [list(entry) for entry in given]
        assert reply["meta_info"]["cached_tokens"] > 0, "what is not judged may come from the cache"
        whole = await send("/generate", back | {"logprob_start_len": 0})
        assert whole["meta_info"]["cached_tokens"] == 0, "what is judged is computed"
        assert scores(whole)[-len(given) :] == given and len(scores(whole)) == len(prompt) + len(given)

    with_server(story, msgspec.structs.replace(CONFIG, speculative_drafts=drafts))


def test_a_foreign_token_is_less_likely_than_the_models_own() -> None:
    async def story(send: Post) -> None:
        prompt = (await send("/v1/tokenize", {"prompt": PROMPT}))["tokens"]
        answer = await send("/generate", {"text": PROMPT, "sampling_params": GREEDY})
        wrong = [(token + 7) % 4096 for token in answer["output_ids"]]
        back = {"input_ids": prompt + wrong, "return_logprob": True, "logprob_start_len": len(prompt) - 1}
        reply = await send("/generate", back | {"top_logprobs_num": 1, "sampling_params": GREEDY})
        assert [token for _, token in scores(reply)[1:]] == wrong
        first, best = reply["meta_info"]["input_token_logprobs"][1], reply["meta_info"]["input_top_logprobs"][1][0]
        assert best[1] == answer["output_ids"][0] and best[0] - first[0] > 1

    with_server(story)


@pytest.mark.parametrize("path", ["/generate", "/v1/completions", "/v1/chat/completions"])
def test_requests_share_a_prefix_with_those_of_their_key_only(path: str) -> None:
    async def story(send: Post) -> None:
        name, body = {
            "/generate": ("extra_key", {"text": PROMPT, "sampling_params": GREEDY}),
            "/v1/completions": ("cache_salt", {"prompt": PROMPT, "max_tokens": 8, "temperature": 0}),
            "/v1/chat/completions": (
                "cache_salt",
                {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 8, "temperature": 0},
            ),
        }[path]
        cached = []
        for key in (None, None, "a", "a", "b", None):
            reply = await send(path, body | ({} if key is None else {name: key}))
            told = reply.get("meta_info") or reply["usage"]["prompt_tokens_details"]
            cached.append(told["cached_tokens"] > 0)
        assert cached == [False, True, False, True, False, True]

    with_server(story)


def test_a_list_of_prompts_is_split_one_by_one(engine: FakeEngine) -> None:
    one, two = (engine.tokenizer.encode(text).ids for text in ("one", "and two"))
    told = post(make_app(engine), "/tokenize", {"prompt": ["one", "and two"]}).json
    assert told == {"tokens": [one, two], "count": [len(one), len(two)], "max_model_len": engine.context}


def test_a_start_outside_the_prompt_is_refused(engine: FakeEngine) -> None:
    engine.tells_scores = True
    body = {"text": "one", "return_logprob": True, "logprob_start_len": 99}
    reply = post(make_app(engine), "/generate", body)
    assert reply.status == 400 and reply.json["error"]["param"] == "logprob_start_len"
