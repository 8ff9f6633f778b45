"""A whole SGLang server on a CPU with a tiny llama, launched and judged by the command line: right with its waits and
wrong without, which the oracles of a URL find out."""

import importlib.metadata
import importlib.util
import random
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pandas
import pytest
from typer.testing import CliRunner

from detectors.answers.clean_cache import ORACLES
from repro.cli import app
from repro.trace.format import Message, Session, Turn
from repro.trace.store import write_sessions
from tests.engines.sglang.builders import INSTALLED, needs_sglang
from tests.engines.sglang.llama import LAYERS, ON_A_CPU, write_llama

TRANSFORMERS = "5.6.0"  # newer ones have configurations that SGLang 0.5.11 registers too
IMPORTED = (
    "aiohttp", "compressed_tensors", "dill", "einops", "fastapi", "gguf", "interegular", "IPython", "loguru",
    "modelscope", "openai_harmony", "opentelemetry",
    "partial_json_parser", "multipart", "sentencepiece", "setproctitle", "soundfile", "tiktoken",
)  # fmt: skip
SLOW = """
[[fault]]
at = "loadback.copy_layer"
do = { kind = "delay", us = 50000 }

[[fault]]
at = "writeback.copy_layer"
do = { kind = "delay", us = 1000 }
"""
NO_WAIT = 'defects = ["hicache_wrapper_no_wait"]\n'
POOL_TOKENS = 2048  # four sessions of six: each is pushed out to the host by the others while it thinks
SESSIONS, TURNS, ANSWER_TOKENS = 6, 3, 16
GENTLE_ANSWERS = 24
RATE = 1 / (GENTLE_ANSWERS + 1)


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


@dataclass
class Server:
    """A server under way, and its control."""

    url: str
    controls: str

    def plan(self, text: str) -> httpx.Response:
        """Give the server a plan."""
        return httpx.post(f"{self.controls}/plan", content=text, timeout=120)

    def counts(self) -> Any:
        """Return what the one process that has a cache counts."""
        [process] = httpx.get(f"{self.controls}/counts", timeout=120).raise_for_status().json()["processes"]
        return process


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("llama")
    write_llama(folder)
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    place = ("--model-path", str(folder), "--port", str(port), "--max-total-tokens", str(POOL_TOKENS))
    launcher = subprocess.Popen(
        [sys.executable, "-m", "repro", "sglang", "--", *place, *ON_A_CPU],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert launcher.stdout is not None
    try:
        log = []
        for line in launcher.stdout:
            log.append(line)
            if control := re.match(r"control at (http://[0-9.]+:[0-9]+)", line):
                break
        else:
            pytest.fail("no control: " + "".join(log[-50:]))
        threading.Thread(target=launcher.stdout.read, daemon=True).start()
        yield Server(f"http://127.0.0.1:{port}", control[1])
    finally:
        launcher.send_signal(signal.SIGTERM)
        assert launcher.wait(60) == 0


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sessions that begin with some 500 tokens each, and think for a second between two turns."""
    rng = random.Random(0)
    path = tmp_path_factory.mktemp("trace") / "sessions.jsonl"
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "omega"]

    def turn(count: int, gap_s: float) -> Turn:
        asked, said = (" ".join(rng.choices(words, k=k)) for k in (count, 5))
        return Turn((Message("user", asked),), reply=Message("assistant", said), gap_s=gap_s)

    first = [turn(180, 0.0) for _ in range(SESSIONS)]
    later = [[turn(8, 1.0) for _ in range(TURNS - 1)] for _ in range(SESSIONS)]
    write_sessions(path, [Session(f"s{number}", (first[number], *later[number])) for number in range(SESSIONS)])
    return path


def repro(*arguments: object) -> tuple[int, dict[str, Any]]:
    """Return a command's exit code and what it prints as JSON."""
    result = CliRunner().invoke(app, [*map(str, arguments), "--answer-tokens", str(ANSWER_TOKENS), "--json", "--quiet"])
    assert result.exit_code in (0, 1), result.output
    return result.exit_code, msgspec.json.decode(result.stdout)


def test_the_oracles_of_a_url_convict_a_server_without_its_waits_and_the_same_one_with_them_of_nothing(
    server: Server, trace: Path, tmp_path: Path
) -> None:
    target = ("--target", server.url, "--api", "generate")
    calibration = tmp_path / "llama.json"
    repro("calibrate", *target, "--out", calibration, "--answers", GENTLE_ANSWERS, "--prompt-tokens", 400)

    def replay(plan: str) -> tuple[int, dict[str, Any], Any]:
        server.plan(plan).raise_for_status()
        oracle = ("--calibration", calibration, "--false-alarm-rate", RATE, "--concurrency", SESSIONS)
        return *repro("replay", trace, *target, *oracle, "--runs", tmp_path / "runs"), server.counts()

    code, told, kept = replay(SLOW)
    assert (code, told["oracle"]["compared"], told["oracle"]["differing"]) == (0, SESSIONS * TURNS, 0), told
    assert {told["detectors"][oracle] for oracle in ORACLES} == {"clean"}
    fired = {name: count["fired"] for name, count in kept["faults"].items()}
    assert fired["loadback.copy_layer.delay"] > 0 == fired["loadback.copy_layer.delay"] % LAYERS
    assert fired["writeback.copy_layer.delay"] > 0
    assert kept["waits_held"] > 0 and not kept["left_out"]

    code, told, dropped = replay(NO_WAIT + SLOW)
    assert code == 1 and {told["detectors"][oracle] for oracle in ORACLES} == {"anomaly"}, told
    assert dropped["early"] > 0 and not dropped["waits"]
    assert told["funnel"]["diverged"] > 0 and convicted(told) <= loaded_back(told)

    code, told, _ = replay("")
    assert (code, told["oracle"]["differing"]) == (0, 0), "the host's copies were right all the time"


def convicted(told: dict[str, Any]) -> set[str]:
    """Return the sessions of the answers that were convicted."""
    findings = (Path(told["run_dir"]) / "findings.jsonl").read_text().splitlines()
    return {msgspec.json.decode(finding)["request"].partition(":")[0] for finding in findings}


def loaded_back(told: dict[str, Any]) -> set[str]:
    """Return the sessions some of whose prompts came from the host."""
    requests = pandas.read_parquet(Path(told["run_dir"]) / "requests.parquet")
    return set(requests[requests.cached_host_tokens > 0].session)


def test_a_plan_that_a_running_server_cannot_take_is_refused_with_a_sentence(server: Server) -> None:
    answer = server.plan('defects = ["sched_double_free"]')
    assert answer.status_code == 400 and 'nearest: "hicache_wrapper_no_wait"' in answer.json()["error"]
