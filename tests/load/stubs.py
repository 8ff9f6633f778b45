"""Servers to test the client with: an ASGI app that speaks OpenAI, and a TCP server that follows a script."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from repro.load.asgi import App, Message

Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


def event(**fields: Any) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def delta(text: str = "", *, finish: str | None = None, meta_info: dict[str, int] | None = None, **more: Any) -> bytes:
    beside = {} if meta_info is None else {"meta_info": meta_info}
    return event(choices=[{"index": 0, "delta": {"content": text, **more}, "finish_reason": finish}], **beside)


def meta(completion: int, verifies: int, accepted: int, drafted: int) -> dict[str, int]:
    """The counts of speculative decoding so far, as SGLang names them."""
    return {
        "completion_tokens": completion, "spec_verify_ct": verifies, "spec_accept_token_num": accepted,
        "spec_draft_token_num": drafted,
    }  # fmt: skip


def usage(prompt: int = 10, completion: int = 3) -> bytes:
    return event(choices=[], usage={"prompt_tokens": prompt, "completion_tokens": completion})


class ChatStub:
    """An OpenAI-like app: `max_tokens` words, one every `token_s`; remembers what it saw.

    A message that contains "refuse" gets a 400, "crash" an exception in the middle of the answer.
    `limit` is its context length in characters / 4.
    """

    def __init__(self, *, token_s: float = 0.01, prefill_s: float = 0.05, limit: int | None = None) -> None:
        self.token_s = token_s
        self.prefill_s = prefill_s
        self.limit = limit
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[bytes, bytes]] = []
        self.arrivals: list[tuple[float, str]] = []
        self.disconnects: list[tuple[str, int]] = []  # (request, words sent)
        self.active = self.active_max = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        body = b""
        while True:
            message = await receive()
            body += message["body"]
            if not message["more_body"]:
                break
        if scope["path"] == "/v1/models":
            await reply(send, 200, {"data": [{"id": "stub", "max_model_len": 4096}]})
            return
        headers = dict(scope["headers"])
        name = headers.get(b"x-request-id", b"").decode()
        self.bodies.append(json.loads(body))
        self.headers.append(headers)
        self.arrivals.append((asyncio.get_running_loop().time(), name))
        self.active += 1
        self.active_max = max(self.active_max, self.active)
        try:
            await self.answer(json.loads(body), name, receive, send)
        finally:
            self.active -= 1

    async def answer(self, body: dict[str, Any], name: str, receive: Receive, send: Send) -> None:
        text = "".join(message.get("content") or "" for message in body["messages"])
        tokens = len(text) // 4
        if self.limit is not None and tokens + body["max_tokens"] > self.limit:
            told = f"This model's maximum context length is {self.limit} tokens, you asked for more"
            await reply(send, 400, {"error": {"message": told}})
            return
        if "refuse" in text:
            await reply(send, 400, {"error": {"message": "I refuse"}})
            return
        gone = asyncio.ensure_future(receive())
        try:
            await send(
                {
                    "type": "http.response.start",
                    "status": 200,
                    "headers": [(b"content-type", b"text/event-stream")],
                }
            )
            await asyncio.sleep(self.prefill_s)
            for word in range(body["max_tokens"]):
                if gone.done():
                    self.disconnects.append((name, word))
                    return
                if "crash" in text and word == 2:
                    raise RuntimeError("out of memory")
                finish = "stop" if word == body["max_tokens"] - 1 else None
                await send(
                    {
                        "type": "http.response.body",
                        "body": delta(f"w{word} ", finish=finish),
                        "more_body": True,
                    }
                )
                await asyncio.sleep(self.token_s)
            tail = usage(tokens, body["max_tokens"]) + b"data: [DONE]\n\n"
            await send({"type": "http.response.body", "body": tail, "more_body": False})
        finally:
            gone.cancel()


async def reply(send: Send, status: int, body: dict[str, Any]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})


def sending(*chunks: bytes, status: int = 200, content_type: bytes = b"text/event-stream") -> App:
    """An app that answers every request with these chunks."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", content_type)]})
        for chunk in chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    return app


Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def tcp_server(script: Script) -> AsyncIterator[str]:
    """A server on an ephemeral port that runs `script` on each connection; yields its URL."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await script(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client has gone, or the test is over
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def read_request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Return head and body of one request."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")),
        0,
    )
    return head, await reader.readexactly(length)


def chunked(*pieces: bytes, end: bool = True) -> bytes:
    """A chunked response with these pieces."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return head + body + (b"0\r\n\r\n" if end else b"")
