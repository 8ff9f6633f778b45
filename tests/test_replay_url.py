"""A replay against a server over real HTTP, from the trace to the verdict."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from reports.summary import summarise
from repro.load.asgi import Message
from repro.record.view import open_run
from repro.replay import replay_scenario
from repro.run import Outcome, RunOptions, run_scenario
from tests.load.stubs import ChatStub, Receive, Send, delta, reply, usage
from tests.server.builders import over_http

FINE = "def read(path):\n    with open(path) as file:\n        return file.read()\n"
LOOP = "over and over and " * 40


class LoopingStub(ChatStub):
    """A server that loops: under load only, or the model says so by itself (`alone`)."""

    def __init__(self, *, alone: bool, flushes: bool = True) -> None:
        super().__init__()
        self.alone, self.flushes = alone, flushes
        self.paths: list[str] = []

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        self.paths.append(scope["path"])
        if scope["path"] == "/flush_cache":
            await reply(send, 200 if self.flushes else 404, {})
        else:
            await super().__call__(scope, receive, send)

    async def answer(self, body: dict[str, Any], name: str, receive: Receive, send: Send) -> None:
        text = FINE if name.endswith(".again") and not self.alone else LOOP
        head = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        for start in range(0, len(text), 10):
            await send({"type": "http.response.body", "body": delta(text[start : start + 10]), "more_body": True})
        tail = delta(finish="stop") + usage() + b"data: [DONE]\n\n"
        await send({"type": "http.response.body", "body": tail, "more_body": False})


def replayed(root: Path, stub: LoopingStub) -> Outcome:
    trace = root / "session.json"
    turns = [{"role": "user", "content": "read the file"}, {"role": "assistant", "content": FINE * 4}]
    trace.write_text(json.dumps({"messages": turns * 2}))
    scenario = replay_scenario(
        [trace], concurrency=4, scale_tokens=1.0, time_scale=0.0, sessions=9, answer_tokens=200, history="recorded",
        arrivals="closed", defects=(),
    )  # fmt: skip
    with over_http(stub) as url:  # type: ignore[arg-type]
        return run_scenario(scenario, RunOptions(url=url), root=root / "runs", utc=datetime(2026, 11, 25, tzinfo=UTC))


def test_a_model_that_loops_by_itself_convicts_no_server(tmp_path: Path) -> None:
    stub = LoopingStub(alone=True)
    outcome = replayed(tmp_path, stub)
    assert (outcome.judgement.word, outcome.judgement.exit_code) == ("clean", 0)
    assert outcome.verdict["funnel"]["model_own"] == 2  # type: ignore[index]
    assert stub.paths[-3:] == ["/flush_cache", "/v1/chat/completions", "/v1/chat/completions"]


def test_a_server_that_loops_under_load_only_is_convicted(tmp_path: Path) -> None:
    outcome = replayed(tmp_path, LoopingStub(alone=False))
    assert (outcome.judgement.word, outcome.judgement.exit_code) == ("anomaly", 1)
    assert outcome.verdict["findings"] == {"repetition": 2}
    run = open_run(outcome.path)
    assert [record.clean_text for record in run.requests] == [FINE, FINE]
    summary = summarise(run)
    assert summary.rate.count == 2 and summary.url.startswith("http:") and "p99" in summary.loop_lag_ms


@pytest.mark.parametrize("alone", [True, False])
def test_a_server_that_keeps_its_cache_can_be_convicted_and_not_acquitted(tmp_path: Path, alone: bool) -> None:
    outcome = replayed(tmp_path, LoopingStub(alone=alone, flushes=False))
    assert outcome.judgement.word == ("inconclusive" if alone else "anomaly")
