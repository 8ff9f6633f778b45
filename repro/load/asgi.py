"""An httpx transport that calls an ASGI app in this process and streams.

httpx's own ASGI transport runs the app to its end before it returns, so a streamed answer arrives in
one piece and a client can't abort. Here the app runs in a task of its own on the current loop, its
chunks reach the client as they are sent, and a client that closes is an `http.disconnect` for the app.
On a virtual loop the whole conversation happens in virtual time.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import httpx

from repro.load.exchange import Exchange

Message = MutableMapping[str, Any]
App = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]

_log = logging.getLogger(__name__)


class AsgiStreamTransport(httpx.AsyncBaseTransport):
    """Answers requests by calling `app`; see `exchange` for the `sink` extension.

    An app that raises before its head is a 500, as with a real server; one that raises in the middle
    of its body is a ReadError, with the app's exception as its cause.
    """

    def __init__(self, app: App, *, client: tuple[str, int] = ("127.0.0.1", 0)) -> None:
        self._app = app
        self._client = client
        self._calls: dict[asyncio.Task[None], _Call] = {}  # ordered by arrival

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Start the app on the request and return once it has sent the head of its response."""
        loop = asyncio.get_running_loop()
        exchange = Exchange(request, loop)
        call = _Call(exchange, await request.aread())
        exchange.begin(call)
        name = f"asgi {request.method} {request.url.path} {request.headers.get('x-request-id', '')}".rstrip()
        task = loop.create_task(call.run(self._app, self._scope(request)), name=name)
        self._calls[task] = call
        task.add_done_callback(self._calls.pop)
        return await exchange.response()

    async def aclose(self) -> None:
        """Disconnect every open request and wait until the app has dealt with it."""
        open_calls = dict(self._calls)
        for call in open_calls.values():
            await call.exchange.aclose()
        for task in open_calls:
            await asyncio.wait((task,))

    def _scope(self, request: httpx.Request) -> Message:
        url = request.url
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},  # what uvicorn announces
            "http_version": "1.1",
            "method": request.method,
            "headers": [(name.lower(), value) for name, value in request.headers.raw],
            "scheme": url.scheme,
            "path": url.path,
            "raw_path": url.raw_path.split(b"?")[0],
            "query_string": url.query,
            "server": (url.host, url.port),
            "client": self._client,
            "root_path": "",
        }


class _Call:
    """One run of the app; the `Wire` of its exchange."""

    def __init__(self, exchange: Exchange, body: bytes) -> None:
        self.exchange = exchange
        self._body: bytes | None = body
        self._gone = asyncio.Event()  # the client has closed, or has got everything
        self._reading = asyncio.Event()
        self._reading.set()

    async def run(self, app: App, scope: Message) -> None:
        """Run the app to its end; an error becomes the client's."""
        try:
            await app(scope, self.receive, self.send)
            problem: Exception | None = None
        except Exception as error:  # a server reports any failure of its app and lives on
            _log.exception("the app failed on %s %s", scope["method"], scope["path"])
            problem = error
        if not self.exchange.ended:
            self._ended_early(problem)
        self._gone.set()

    async def receive(self) -> Message:
        """ASGI: the request's body first, then nothing until the client goes."""
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """ASGI: head or piece of the body; waits while the client doesn't read, ignored once it is gone."""
        while not self._reading.is_set() and not self.exchange.ended:
            await self._reading.wait()
        if self.exchange.ended:
            return
        if message["type"] == "http.response.start":
            headers = [(bytes(name), bytes(value)) for name, value in message.get("headers", [])]
            self.exchange.start(message["status"], headers)
        elif message["type"] == "http.response.body":
            if message.get("body"):
                self.exchange.feed(bytes(message["body"]))
            if not message.get("more_body", False):
                self.exchange.finish()
                self._gone.set()

    def pause_reading(self) -> None:
        """Make the app's next send wait."""
        self._reading.clear()

    def resume_reading(self) -> None:
        """Let the app send again."""
        self._reading.set()

    def hang_up(self) -> None:
        """Tell the app that the client is gone."""
        self._gone.set()
        self._reading.set()

    def _ended_early(self, problem: Exception | None) -> None:
        if not self.exchange.head.done():
            self.exchange.start(500, [(b"content-type", b"text/plain; charset=utf-8")])
            self.exchange.feed(b"Internal Server Error")
            self.exchange.finish()
            return
        error = httpx.ReadError("the app stopped in the middle of its answer", request=self.exchange.request)
        error.__cause__ = problem
        self.exchange.fail(error)
