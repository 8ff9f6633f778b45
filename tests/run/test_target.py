"""Servers that refuse, hang, die, or answer nonsense: the run fails or is inconclusive, never clean, never stuck."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from repro.base.errors import TargetError
from repro.record.view import open_run
from repro.run.options import RunOptions
from repro.run.outcome import Outcome
from tests.tiny import run_tiny, tiny_scenario

Answer = Callable[["Handler", int], None]  # (handler, how many answers were asked for before)


class Handler(BaseHTTPRequestHandler):
    """Speaks OpenAI's API as far as `server.answer` wants it."""

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self.server.models(self)  # type: ignore[attr-defined]
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        number = self.server.asked  # type: ignore[attr-defined]
        self.server.asked += 1  # type: ignore[attr-defined]
        self.server.answer(self, number)  # type: ignore[attr-defined]

    def say(self, body: bytes, kind: str = "application/json", status: int = 200) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    asked = 0

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # the client has gone


def fine_models(handler: Handler) -> None:
    handler.say(json.dumps({"data": [{"id": "m", "max_model_len": 4096}]}).encode())


def fine(handler: Handler, number: int = 0, text: str = "Done.") -> None:
    piece = {"choices": [{"delta": {"content": text}, "finish_reason": "stop"}]}
    handler.say(f"data: {json.dumps(piece)}\n\ndata: [DONE]\n\n".encode(), "text/event-stream")


@contextmanager
def serving(answer: Answer = fine, models: Callable[[Handler], None] = fine_models) -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), Handler)
    server.answer, server.models = answer, models  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def ask(root: Path, server: Server, *, wall_s: float = 60) -> Outcome:
    scenario = tiny_scenario(end=f"[limits]\nwall_s = {wall_s}")
    options = RunOptions(url=f"http://127.0.0.1:{server.server_port}")
    return run_tiny(root, scenario, options=options, clock_s=time.monotonic)


def test_a_healthy_server_is_clean_and_has_no_token(tmp_path: Path) -> None:
    with serving() as server:
        outcome = ask(tmp_path, server)
    assert outcome.verdict.word == "clean" and outcome.verdict.token == ""
    assert [record.text for record in open_run(outcome.path).requests] == ["Done."] * 4


def test_a_server_that_dies_in_the_middle_fails_the_run_and_its_answers_are_kept(tmp_path: Path) -> None:
    def dying(handler: Handler, number: int) -> None:
        if number < 2:
            fine(handler)
        else:
            handler.server.socket.close()
            handler.connection.close()

    with serving(dying) as server:
        outcome = ask(tmp_path, server)
    assert outcome.verdict.word == "failed"
    assert outcome.verdict.why[0].startswith("the target stopped answering: ")
    assert sum(record.finish == "stop" for record in open_run(outcome.path).requests) == 2


@pytest.mark.parametrize(
    ("body", "kind", "told"),
    [
        (b'{"ok": true}', "application/json", "malformed: expected text/event-stream, the server sent"),
        (b"data: {not json\n\n", "text/event-stream", "malformed: an event is not what the API says"),
        (b'data: {"choices": [{"delta": {"content": "\\ud800"}}]}\n\n', "text/event-stream", "malformed: "),
    ],
)
def test_nonsense_for_answers_fails_the_run(body: bytes, kind: str, told: str, tmp_path: Path) -> None:
    with serving(lambda handler, number: handler.say(body, kind)) as server:
        outcome = ask(tmp_path, server)
    assert outcome.verdict.word == "failed"
    assert outcome.verdict.why[0].startswith("no request was answered: 4 malformed; the first, code-review-0-")
    assert told in outcome.verdict.why[0]


def test_a_server_that_refuses_some_is_inconclusive_and_one_that_says_nothing_too(tmp_path: Path) -> None:
    def moody(handler: Handler, number: int) -> None:
        if number % 2:
            handler.say(b'{"error": {"message": "no"}}', status=400)
        else:
            fine(handler)

    with serving(moody) as server:
        assert ask(tmp_path, server).verdict.why[0].startswith("2 of 4 turns got no answer: 2 rejected; the first,")
    with serving(lambda handler, number: fine(handler, text="")) as server:
        outcome = ask(tmp_path, server)
    assert outcome.verdict.why == ("all 4 answers are empty: there was nothing to judge",)
    assert outcome.verdict.word.exit_code == 5


def test_a_server_that_never_answers_is_ended_by_the_wall_clock(tmp_path: Path) -> None:
    free = threading.Event()
    with serving(lambda handler, number: bool(free.wait(30)) and None) as server:  # type: ignore[func-returns-value]
        outcome = ask(tmp_path, server, wall_s=1)
        free.set()
    assert outcome.verdict.word == "inconclusive" and "limits.wall_s" in outcome.verdict.why[0]


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        (b"<html>", 200, "no list of models .* is this an OpenAI-compatible server?"),
        (b'{"data": []}', 200, "no list of models"),
        (b'{"error": {"message": "no key"}}', 401, "answered 401: no key"),
        (b"boom", 500, "answered 500: boom"),
    ],
)
def test_a_server_that_names_no_model_is_told(body: bytes, status: int, told: str, tmp_path: Path) -> None:
    with (
        serving(models=lambda handler: handler.say(body, status=status)) as server,
        pytest.raises(TargetError, match=told),
    ):
        ask(tmp_path, server)


def test_a_port_that_accepts_and_says_nothing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("repro.run.targets.server.FACTS_TIMEOUT_S", 0.2)
    free = threading.Event()
    with (
        serving(models=lambda handler: bool(free.wait(30)) and None) as server,  # type: ignore[func-returns-value]
        pytest.raises(TargetError, match="no answer within 0 s; is this the server's port?"),
    ):
        try:
            ask(tmp_path, server)
        finally:
            free.set()


def test_requests_of_the_bundled_stack_say_where_their_prefix_was(tmp_path: Path) -> None:
    outcome = run_tiny(tmp_path)
    records = {record.request: record for record in open_run(outcome.path).requests}
    admitted = [event for event in open_run(outcome.path).events() if getattr(event, "what", "") == "admitted"]
    assert len(admitted) == len(records) == 4
    for event in admitted:
        record, detail = records[event.request], event.detail  # type: ignore[union-attr]
        assert (record.cached_device_tokens, record.cached_host_tokens) == (detail["device_hit"], detail["host_hit"])
    assert any(record.cached_device_tokens for record in records.values())
