"""What clients are told of speculation, by the bundled engine in stamps; and that nothing is told when it is off."""

import asyncio
from typing import Any

import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families
from tokenizers import Tokenizer

from repro.base.clock import run_virtual
from repro.serve.config import EngineConfig
from repro.serve.device.sim import SimDevice
from repro.serve.engine import Engine, load
from repro.serve.server.app import create_app
from repro.serve.server.chat import ChatEncoder, checkpoint_text
from tests.serve.server.builders import Reply, call

TOKENS = 150
PROMPT = {"messages": [{"role": "user", "content": "def answer():\n    return 42\n" * 10}], "model": "default"}
STREAM_KEYS = ["completion_tokens", "spec_verify_ct", "spec_accept_token_num", "spec_draft_token_num"]


def replies(tokenizer: Tokenizer, drafts: int, *requests: tuple[str, dict[str, Any]]) -> tuple[list[Reply], Reply]:
    """Return the replies to requests that come one after the other, and then /metrics."""
    config = EngineConfig(numerics="stamps", context_tokens=1024, speculative_drafts=drafts)
    device = SimDevice()
    engine = Engine(config, load(config, ChatEncoder(checkpoint_text("tokenizer.json")).decode), device)
    app = create_app(engine, tokenizer, clock=lambda: 0.0)

    async def main() -> tuple[list[Reply], Reply]:
        running = asyncio.create_task(engine.run())
        got = [await call(app, "POST", path, body) for path, body in requests]
        metrics = await call(app, "GET", "/metrics")
        engine.stop()
        await running
        return got, metrics

    with torch.inference_mode():
        return run_virtual(main(), device)


def native(tokens: int = TOKENS, **more: Any) -> tuple[str, dict[str, Any]]:
    sampling = {"max_new_tokens": tokens, "temperature": 0, "ignore_eos": True}
    return "/generate", {"input_ids": list(range(20, 60)), "sampling_params": sampling} | more


def streamed(path: str, **body: Any) -> tuple[str, dict[str, Any]]:
    return path, {"max_tokens": TOKENS, "temperature": 0, "ignore_eos": True, "stream": True, "model": "default"} | body


def test_generate_tells_sglangs_counts_and_they_add_up(tokenizer: Tokenizer) -> None:
    [reply], _ = replies(tokenizer, 3, native())
    info = reply.json["meta_info"]
    verified, accepted = info["spec_verify_ct"], info["spec_accept_token_num"]
    assert info["completion_tokens"] == TOKENS == 1 + verified + accepted
    assert info["spec_draft_token_num"] == 3 * verified
    assert info["spec_accept_length"] == TOKENS / verified
    assert info["spec_accept_rate"] == accepted / (verified * (4 - 1))
    histogram = info["spec_accept_histogram"]
    assert len(histogram) == 4 and sum(histogram) == verified
    assert sum(drafts * steps for drafts, steps in enumerate(histogram)) == accepted
    assert len(info["spec_accept_windows"]) == TOKENS // 64 and all(
        1 <= each <= 4 for each in info["spec_accept_windows"]
    )


def test_an_answer_of_one_token_verified_nothing_and_has_no_accept_length(tokenizer: Tokenizer) -> None:
    [reply], metrics = replies(tokenizer, 3, native(tokens=1))
    info = reply.json["meta_info"]
    assert info["spec_verify_ct"] == 0 and "spec_accept_length" not in info and "spec_accept_rate" not in info
    assert b"spec_accept" not in metrics.body


def test_a_stream_of_generate_tells_the_counts_so_far(tokenizer: Tokenizer) -> None:
    [reply], _ = replies(tokenizer, 3, native(stream=True))
    infos = [event["meta_info"] for event in reply.events]
    assert all(
        info["completion_tokens"] == 1 + info["spec_verify_ct"] + info["spec_accept_token_num"] for info in infos
    )
    assert len(infos) == infos[-1]["spec_verify_ct"] + 1


@pytest.mark.parametrize(
    "path, body",
    [("/v1/chat/completions", {"messages": PROMPT["messages"]}), ("/v1/completions", {"prompt": "def answer():"})],
)
def test_openai_streams_tell_the_counts_in_each_chunk_with_tokens_and_in_the_last(
    path: str, body: dict[str, Any], tokenizer: Tokenizer
) -> None:
    [reply], _ = replies(tokenizer, 3, streamed(path, **body))
    *chunks, last = [event for event in reply.events if event["choices"][0].get("delta", {}).get("role") is None]
    assert [list(chunk["meta_info"]) for chunk in (*chunks, last)] == [STREAM_KEYS] * (len(chunks) + 1)
    assert all(chunk["id"] == last["id"] for chunk in chunks)
    assert last["choices"][0]["finish_reason"] == "length"
    info = last["meta_info"]
    assert info["completion_tokens"] == TOKENS == 1 + info["spec_verify_ct"] + info["spec_accept_token_num"]
    told = [chunk["meta_info"]["completion_tokens"] for chunk in chunks]
    assert told == sorted(told) and told[-1] == TOKENS


def test_metrics_have_both_gauges(tokenizer: Tokenizer) -> None:
    [reply], metrics = replies(tokenizer, 3, native())
    info = reply.json["meta_info"]
    samples = [s for family in text_string_to_metric_families(metrics.body.decode()) for s in family.samples]
    value = {sample.name: sample.value for sample in samples}
    assert value["sglang:spec_accept_rate"] == pytest.approx(info["spec_accept_rate"])
    assert value["sglang:spec_accept_length"] == pytest.approx(
        1 + info["spec_accept_token_num"] / info["spec_verify_ct"]
    )


def test_nothing_is_told_when_speculation_is_off(tokenizer: Tokenizer) -> None:
    chat = streamed("/v1/chat/completions", messages=PROMPT["messages"])
    got, metrics = replies(tokenizer, 0, native(), chat, streamed("/v1/completions", prompt="def"))
    assert all(b"spec_" not in reply.body for reply in (*got, metrics))
    assert all("meta_info" not in event for reply in got[1:] for event in reply.events)
