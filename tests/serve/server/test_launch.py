"""`serve` as a program: address errors, ready line, Ctrl-C."""

import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

from repro.base.errors import UsageError
from repro.serve.launch import bind, serve, url_of
from repro.serve.server.bridge import HostedEngine
from tests.serve.server.builders import chat

TESTS = Path(__file__).parents[1]
PROGRAM = """
import asyncio, sys
from tokenizers import Tokenizer
from repro.base.clock import VirtualLoop
from tests.idle import IdleWorld
from repro.serve.launch import serve
from repro.serve.server.bridge import HostedEngine
from repro.serve.server.chat import checkpoint_text
from repro.serve.server.service import Limits
from server.fake import FakeEngine

tokenizer = Tokenizer.from_str(checkpoint_text("tokenizer.json"))
engine = FakeEngine(tokenizer)

async def run():
    engine.gate = asyncio.Event if sys.argv[1] == "hangs" else None
    await asyncio.Event().wait()

serve(
    lambda: HostedEngine(VirtualLoop(IdleWorld(), external=True), engine, run),
    tokenizer, port=0, clock=lambda: 0.0, limits=Limits(grace_s=0.2), on_ready=lambda url: print(url, flush=True),
)
print("ended in order", engine.running, flush=True)
"""


def never_built() -> HostedEngine:
    raise AssertionError("the engine must not be built for an address that is refused")


def test_a_port_in_use_is_one_sentence_and_a_usage_error() -> None:
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError) as caught:
            serve(never_built, None, port=port, clock=lambda: 0.0)  # type: ignore[arg-type]
    assert caught.value.word.exit_code == 2
    assert str(caught.value) == (
        f"cannot listen on 127.0.0.1:{port}: another program listens there; stop it, or choose another port "
        "with --port (0 picks a free one)"
    )


@pytest.mark.parametrize(
    ("host", "port"), [("127.0.0.1", 70_000), ("127.0.0.1", -1), ("203.0.113.7", 0), ("a" * 80, 1)]
)
def test_impossible_addresses_are_usage_errors(host: str, port: int) -> None:
    with pytest.raises(UsageError, match="cannot listen on"):
        bind(host, port)


def test_url_of_brackets_ipv6() -> None:
    try:
        listener = bind("::1", 0)
    except UsageError:
        pytest.skip("this machine has no IPv6")
    with listener:
        assert url_of(listener) == f"http://[::1]:{listener.getsockname()[1]}"


def test_a_factory_that_fails_frees_the_port() -> None:
    with bind("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    with pytest.raises(AssertionError, match="must not be built"):
        serve(never_built, None, port=port, clock=lambda: 0.0)  # type: ignore[arg-type]
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("engine", ["answers", "hangs"])
def test_a_signal_ends_the_server_in_order(end: signal.Signals, engine: str) -> None:
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, engine], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=TESTS,
        env={"PYTHONPATH": f"{TESTS.parents[1]}:{TESTS}"},
    )  # fmt: skip
    assert program.stdout is not None
    url = program.stdout.readline().strip()
    replies: list[httpx.Response] = []

    def ask() -> None:
        replies.append(httpx.post(url + "/v1/chat/completions", json=chat(rid="r"), timeout=20))

    with httpx.Client(base_url=url) as client:
        asking = threading.Thread(target=ask)
        asking.start()
        while engine == "hangs" and client.get("/server_info").json()["requests_in_flight"] == 0:
            pass
        if engine == "answers":
            asking.join(20)
        program.send_signal(end)
    out, problems = program.communicate(timeout=30)
    asking.join(20)
    assert program.returncode == 0 and problems == ""
    finish = replies[0].json()["choices"][0]["finish_reason"]
    assert out.strip() == "ended in order {}" and finish == ("stop" if engine == "answers" else "abort")
