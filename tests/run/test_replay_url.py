"""A replay against a server over real HTTP, from the trace to the verdict."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from reports.run.html import render_report
from reports.run.story import replay_command
from reports.run.summary import summarise
from repro.load.asgi import Message
from repro.load.wire import Api
from repro.record.counts import Retries
from repro.record.view import open_run
from repro.run.options import RunOptions
from repro.run.outcome import Outcome
from repro.run.run import run_scenario
from repro.scenario.from_traces import replay_scenario
from repro.scenario.schema import LoadSpec
from repro.trace.format import Message as Said
from repro.trace.format import Session, Turn
from repro.trace.store import write_sessions
from tests.load.stubs import ChatStub, Receive, Send, delta, event, meta, reply, usage
from tests.serve.server.builders import over_http

FINE = "def read(path):\n    with open(path) as file:\n        return file.read()\n"
LOOP = "over and over and " * 40


class LoopingStub(ChatStub):
    """A server that loops: under load only, or the model says so by itself (`alone`)."""

    fine_endings: tuple[str, ...] = (".again",)  # of the requests that are answered well

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
        text = FINE if name.endswith(self.fine_endings) and not self.alone else LOOP
        head = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        for start in range(0, len(text), 10):
            await send({"type": "http.response.body", "body": delta(text[start : start + 10]), "more_body": True})
        tail = delta(finish="stop") + usage() + b"data: [DONE]\n\n"
        await send({"type": "http.response.body", "body": tail, "more_body": False})


def replayed(
    root: Path,
    stub: ChatStub,
    trace: Path | None = None,
    api: Api = "chat",
    acceptance: tuple[str, ...] = (),
    **options: Any,
) -> Outcome:
    if trace is None:
        trace = root / "session.json"
        turns = [{"role": "user", "content": "read the file"}, {"role": "assistant", "content": FINE * 4}]
        trace.write_text(json.dumps({"messages": turns * 2}))
    load = LoadSpec(sessions=9, concurrency=4, time_scale=0.0, answer_tokens_max=200, **options)
    scenario = replay_scenario(load, [trace], acceptance=acceptance)
    with over_http(stub) as url:  # type: ignore[arg-type]
        return run_scenario(
            scenario, RunOptions(url=url, api=api), root=root / "runs", utc=datetime(2026, 11, 25, tzinfo=UTC)
        )


def test_a_model_that_loops_by_itself_convicts_no_server(tmp_path: Path) -> None:
    stub = LoopingStub(alone=True)
    outcome = replayed(tmp_path, stub)
    assert (outcome.verdict.word, outcome.verdict.word.exit_code) == ("clean", 0)
    assert outcome.verdict.funnel.model_own == 2
    assert stub.paths[-3:] == ["/flush_cache", "/v1/chat/completions", "/v1/chat/completions"]


def test_a_server_that_loops_under_load_only_is_convicted(tmp_path: Path) -> None:
    outcome = replayed(tmp_path, LoopingStub(alone=False))
    assert (outcome.verdict.word, outcome.verdict.word.exit_code) == ("anomaly", 1)
    assert outcome.verdict.findings == {"repetition": 2}
    run = open_run(outcome.path)
    assert [record.clean_text for record in run.requests] == [FINE, FINE]
    summary = summarise(run)
    assert summary.rate.count == 2 and summary.url.startswith("http:")


@pytest.mark.parametrize("alone", [True, False])
def test_a_server_that_keeps_its_cache_can_be_convicted_and_not_acquitted(tmp_path: Path, alone: bool) -> None:
    outcome = replayed(tmp_path, LoopingStub(alone=alone, flushes=False))
    assert outcome.verdict.word == ("inconclusive" if alone else "anomaly")


class RetriedStub(LoopingStub):
    """A server that loops at first, and answers the same question well when it is asked again."""

    fine_endings = (".again", ".1")


class DraftingStub(LoopingStub):
    """A server that answers well, a token an event, and accepts no draft of the first request of a turn."""

    async def answer(self, body: dict[str, Any], name: str, receive: Receive, send: Send) -> None:
        accepted = 2 if name.endswith((".again", ".1")) or name.endswith(":1") else 0
        head = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        words = [f"{number} " for number in range(160)]
        for number, word in enumerate(words, 1):
            told = meta((accepted + 1) * number, number, accepted * number, 3 * number)
            finish = "stop" if number == len(words) else None
            chunk = delta(word, finish=finish, meta_info=told)
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})


def test_an_answer_that_loops_is_given_up_and_the_next_one_is_clean(tmp_path: Path) -> None:
    stub = RetriedStub(alone=False)
    outcome = replayed(tmp_path, stub, on_anomaly="abort-retry")
    assert outcome.verdict.word == "anomaly"
    assert outcome.verdict.retries == Retries(aborted_retried=2, retried_clean=2)
    records = open_run(outcome.path).requests
    assert [(record.finish, record.retry_of != "") for record in records] == [("abort", False), ("stop", True)] * 2
    assert all(len(record.text) < len(LOOP) for record in records)
    assert "2 came back clean, 0 convicted again." in render_report(open_run(outcome.path))


def test_a_model_that_loops_always_is_asked_again_so_often_and_no_more(tmp_path: Path) -> None:
    stub = LoopingStub(alone=True)
    outcome = replayed(tmp_path, stub, on_anomaly="abort-retry", anomaly_retries_max=2)
    assert outcome.verdict.word == "clean"  # the model's own
    assert outcome.verdict.retries.retried_convicted == 4
    assert [record.finish for record in open_run(outcome.path).requests] == ["abort", "abort", "stop"] * 2


def test_odd_acceptance_aborts_is_retried_and_convicts_the_server(tmp_path: Path) -> None:
    outcome = replayed(tmp_path, DraftingStub(alone=False), on_anomaly="abort-retry")
    assert outcome.verdict.word == "anomaly" and outcome.verdict.findings == {"acceptance": 1}
    assert outcome.verdict.funnel.acceptance == 1
    assert outcome.verdict.retries.retried_clean == 1
    first, second, third = open_run(outcome.path).requests
    assert first.oracle == "same"  # as far as it came: the drafts were wrong, the tokens were not
    assert "after 128 tokens, the limit is 1.4" in render_report(open_run(outcome.path))
    assert (first.finish, first.completion_tokens, first.spec_verify_ct) == ("abort", 128, 128)
    assert (second.completion_tokens, second.spec_accept_token_num, third.acceptance) == (480, 320, False)
    assert len(second.spec_window_rates) == 7


def test_a_server_without_counts_is_inconclusive_only_when_they_were_asked_for(tmp_path: Path) -> None:
    outcome = replayed(tmp_path, LoopingStub(alone=True))
    assert outcome.verdict.detectors["acceptance"] == "not_applicable"
    outcome = replayed(tmp_path, LoopingStub(alone=True), acceptance=("length_min=1.4",))
    assert (outcome.verdict.word, outcome.verdict.word.exit_code) == ("inconclusive", 5)
    assert outcome.verdict.why == (
        "acceptance: the target tells no counts of speculative decoding (meta_info; SGLang has them on /generate only)",
    )


class GeneratingStub(LoopingStub):
    """SGLang's /generate: the whole answer so far in each event, and the counts of its drafts beside it."""

    async def answer(self, body: dict[str, Any], name: str, receive: Receive, send: Send) -> None:
        accepted = 0 if body["rid"].endswith(":0") else 2
        head = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        for number in range(1, 161):
            told: dict[str, Any] = dict(meta((accepted + 1) * number, number, accepted * number, 3 * number))
            told["finish_reason"] = {"type": "stop"} if number == 160 else None
            ids = list(range((accepted + 1) * number))
            chunk = event(text="".join(f"{n} " for n in range(number)), output_ids=ids, meta_info=told)
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})


def test_sglangs_own_api_tells_the_counts(tmp_path: Path) -> None:
    outcome = replayed(tmp_path, GeneratingStub(alone=False), api="generate")
    assert outcome.verdict.findings == {"acceptance": 1}
    run = open_run(outcome.path)
    assert [record.spec_verify_ct for record in run.requests] == [160, 160]
    assert run.requests[0].text == "".join(f"{n} " for n in range(160))
    assert "--api generate" in replay_command(summarise(run))


class LeakingStub(ChatStub):
    """A server that ends each answer with the ticket of another session."""

    async def answer(self, body: dict[str, Any], name: str, receive: Receive, send: Send) -> None:
        other = NONCES[1 - int(name[1])]
        head = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        pieces = [FINE, other[2:7], other[7:14], "\n"]
        chunks = b"".join(map(delta, pieces)) + delta(finish="stop") + usage() + b"data: [DONE]\n\n"
        await send({"type": "http.response.body", "body": chunks, "more_body": False})


NONCES = ("0123456789abcdef", "fedcba9876543210")


def test_another_sessions_nonce_in_an_answer_is_an_anomaly(tmp_path: Path) -> None:
    sessions = [
        Session(f"s{number}", (Turn((Said("user", f"Ticket {nonce}.\nread the file"),)),), nonce=nonce)
        for number, nonce in enumerate(NONCES)
    ]
    write_sessions(tmp_path / "two.jsonl", sessions)
    outcome = replayed(tmp_path, LeakingStub(), tmp_path / "two.jsonl")
    assert outcome.verdict.word == "anomaly" and outcome.verdict.findings == {"cross_prompt_leak": 2}
    assert outcome.verdict.funnel.visible == 2
