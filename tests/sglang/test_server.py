"""A whole SGLang server on a CPU with a tiny llama: right with its waits and wrong without, told while it runs."""

import importlib.metadata
import importlib.util
import random
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from repro.sglang_server.launch import SglangServer, control
from tests.sglang.builders import INSTALLED, needs_sglang
from tests.sglang.llama import ON_A_CPU, write_llama

TRANSFORMERS = "5.6.0"  # newer ones have configurations that SGLang 0.5.11 registers too
IMPORTED = (
    "aiohttp", "compressed_tensors", "dill", "einops", "fastapi", "gguf", "interegular", "IPython", "loguru",
    "modelscope", "openai_harmony", "opentelemetry",
    "partial_json_parser", "multipart", "sentencepiece", "setproctitle", "soundfile", "tiktoken",
)  # fmt: skip
SLOW = '[[fault]]\nat = "loadback.copy_layer"\ndo = { kind = "delay", us = 50000 }\n'
NO_WAIT = 'defects = ["hicache_wrapper_no_wait"]\n'
POOL_TOKENS = 1024


def _missing() -> list[str]:
    absent = [name for name in IMPORTED if importlib.util.find_spec(name) is None]
    found = importlib.metadata.version("transformers")
    return absent + ([] if found == TRANSFORMERS else [f"transformers {TRANSFORMERS} ({found} is installed)"])


pytestmark = [
    needs_sglang,
    pytest.mark.skipif(
        INSTALLED != "no version" and bool(_missing()),
        reason=f"the server imports {', '.join(_missing())}: pip install 'glm5-repro[sglang-server]'",
    ),
]


class Session:
    """A client of the server and of its control."""

    def __init__(self, server: str, controls: str) -> None:
        self._server = httpx.Client(base_url=server, timeout=120)
        self._controls = httpx.Client(base_url=controls, timeout=120)
        self._rng = random.Random(0)

    def tokens(self, count: int) -> list[int]:
        """Return random tokens."""
        return [self._rng.randrange(300, 4000) for _ in range(count)]

    def ask(self, tokens: list[int], answer_tokens: int = 8) -> Any:
        """Return SGLang's answer to a prompt."""
        sampling = {"temperature": 0, "max_new_tokens": answer_tokens, "ignore_eos": True}
        said = self._server.post("/generate", json={"input_ids": tokens, "sampling_params": sampling})
        return said.raise_for_status().json()

    def after_eviction(self, tokens: list[int]) -> list[int]:
        """Return the answer to a prompt that was pushed out to the host by others."""
        for _ in range(3):
            self.ask(self.tokens(448), 2)
            time.sleep(0.2)  # real time: SGLang looks after its transfers between two steps
        said = self.ask(tokens)
        assert said["meta_info"]["cached_tokens_details"]["host"] > 400, said["meta_info"]
        answer: list[int] = said["output_ids"]
        return answer

    def plan(self, text: str) -> httpx.Response:
        """Give the server a plan."""
        return self._controls.post("/plan", content=text)

    def counts(self) -> Any:
        """Return what the one process that has a cache counts."""
        [process] = self._controls.get("/counts").raise_for_status().json()["processes"]
        return process


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    folder = tmp_path_factory.mktemp("llama")
    write_llama(folder)
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    place = ("--model-path", str(folder), "--port", str(port), "--max-total-tokens", str(POOL_TOKENS))
    server = SglangServer((*place, *ON_A_CPU))
    try:
        server.start()
        with control(server) as controls:
            threading.Thread(target=controls.serve_forever, daemon=True).start()
            yield Session(server.url, f"http://127.0.0.1:{controls.server_port}")
            controls.shutdown()
    finally:
        server.stop()


def test_with_its_waits_a_slow_load_back_changes_no_token_and_without_them_it_does(session: Session) -> None:
    prompt = session.tokens(512)
    cold = session.ask(prompt)["output_ids"]
    session.plan(SLOW).raise_for_status()
    assert session.after_eviction(prompt) == cold
    kept = session.counts()
    assert kept["faults"]["loadback.copy_layer.delay"]["fired"] > 0
    assert kept["waits_held"] > 0 and not kept["left_out"]
    session.plan(NO_WAIT + SLOW).raise_for_status()
    assert session.after_eviction(prompt) != cold
    dropped = session.counts()
    assert dropped["early"] > 0 and not dropped["waits"]
    session.plan("").raise_for_status()
    assert session.after_eviction(prompt) == cold  # the host's copy was right all the time


def test_a_plan_that_a_running_server_cannot_take_is_refused_with_a_sentence(session: Session) -> None:
    answer = session.plan('defects = ["sched_double_free"]')
    assert answer.status_code == 400 and 'nearest: "hicache_wrapper_no_wait"' in answer.json()["error"]
