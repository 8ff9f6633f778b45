"""The application in process, and over real HTTP on a port of its own."""

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.types import Message, Scope

from repro.base.clock import run_virtual
from repro.serve.launch import bind, url_of
from repro.serve.server.app import create_app
from repro.serve.server.service import DEFAULT_LIMITS, Limits
from tests.idle import IdleWorld
from tests.serve.server.fake import FakeEngine

NEVER_S = 1e9


@dataclass
class Reply:
    """What came back; `chunks` are the body messages as they were sent, `at_s` when."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    chunks: list[bytes] = field(default_factory=list)
    at_s: list[float] = field(default_factory=list)

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        lines = [line for line in self.body.decode().split("\n\n") if line]
        assert all(line.startswith("data: ") for line in lines)
        assert lines[-1] == "data: [DONE]"
        return [json.loads(line[6:]) for line in lines[:-1]]


def make_app(
    engine: FakeEngine, limits: Limits = DEFAULT_LIMITS, clock: Callable[[], float] | None = None
) -> Starlette:
    """Return the application; its clock is the running loop's."""
    return create_app(engine, engine.tokenizer, clock=clock or _loop_time, limits=limits)


async def call(
    app: Starlette,
    method: str,
    path: str,
    body: object = None,
    headers: Mapping[str, str] | None = None,
    leave_after_s: float = NEVER_S,
) -> Reply:
    """Make one request as an ASGI server would; the client leaves after `leave_after_s`."""
    raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    messages: list[Message] = [{"type": "http.request", "body": raw, "more_body": False}]
    reply = Reply()
    done = asyncio.Event()

    async def receive() -> Message:
        if messages:
            return messages.pop()
        with suppress(TimeoutError):
            await asyncio.wait_for(done.wait(), leave_after_s)
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            reply.status = message["status"]
            reply.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            reply.chunks.append(message.get("body", b""))
            reply.at_s.append(asyncio.get_running_loop().time())

    await app(_scope(method, path, headers or {}), receive, send)
    done.set()
    return reply


def post(app: Starlette, path: str, body: object, headers: Mapping[str, str] | None = None) -> Reply:
    """Post once, in virtual time."""
    return run_virtual(call(app, "POST", path, body, headers), IdleWorld())


def get(app: Starlette, path: str) -> Reply:
    """Get once, in virtual time."""
    return run_virtual(call(app, "GET", path), IdleWorld())


def virtual(main: Awaitable[Any]) -> Any:
    """Run a coroutine in virtual time."""
    return run_virtual(main, IdleWorld())  # type: ignore[arg-type]


@contextmanager
def over_http(app: Starlette) -> Iterator[str]:
    """Serve the application with uvicorn in a thread on a free port; yield its URL."""
    listener = bind("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="warning", ws="none"))
    url = url_of(listener)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        yield url
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def chat(text: str = "hi", **fields: object) -> dict[str, object]:
    """Return the body of a small chat request."""
    return {"model": "fake-glm", "messages": [{"role": "user", "content": text}], **fields}


def _scope(method: str, path: str, headers: Mapping[str, str]) -> Scope:
    path, _, query = path.partition("?")
    raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    return {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method,
        "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": query.encode(),
        "root_path": "", "headers": raw, "client": ("client", 1), "server": ("server", 80),
    }  # fmt: skip


def _loop_time() -> float:
    try:
        return asyncio.get_running_loop().time()
    except RuntimeError:
        return 0.0
