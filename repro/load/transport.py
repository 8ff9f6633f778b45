"""An httpx transport for many slow streams at once: HTTP/1.1 on httptools, straight on asyncio.

Why not a library's: httpx's own pool costs time quadratic in open requests and wakes a task through
several layers for every chunk (p99 lag of 15 s at 1,024 streams of 20 ms); httpx-aiohttp keeps the
layers (52 ms); pyreqwest 0.15's httpx transport fills a buffer and delivers a stream's first second of
tokens at once; httpx2's pool is httpx's. httpx's public transport seam lets us replace just that part
and keep the client API that users know. `python -m tests.bench.client` measures.

    AsyncClient.send -> PushTransport -> _Connection (asyncio protocol) -> httptools -> Exchange -> sink

Connections are kept alive per origin. A request is never sent twice behind the caller's back: the
harness counts requests, so a stale connection is avoided by a short expiry instead of a retry.
"""

import asyncio
import ssl
from collections.abc import Iterator
from typing import cast

import httptools
import httpx

from repro.load.exchange import Exchange

CONNECTIONS_MAX = 16_384
KEEPALIVE_EXPIRY_S = 2.0  # shorter than any common server's (uvicorn: 5 s), so that it never closes first
HANDSHAKE_TIMEOUT_S = 60.0  # TLS; the connect timeout covers it too when it is shorter

Origin = tuple[bytes, str, int]


class PushTransport(httpx.AsyncBaseTransport):
    """HTTP/1.1 for `httpx.AsyncClient(transport=...)`; see `exchange` for the `sink` extension.

    Raises httpx exceptions: ConnectError, ConnectTimeout, ReadTimeout, ReadError, RemoteProtocolError,
    PoolTimeout. Proxies and HTTP/2 are not spoken. Must be used from one event loop.
    """

    def __init__(
        self,
        *,
        ssl_context: ssl.SSLContext | None = None,
        connections_max: int = CONNECTIONS_MAX,
        keepalive_expiry_s: float = KEEPALIVE_EXPIRY_S,
    ) -> None:
        self._ssl_context = ssl_context
        self._connections_max = connections_max
        self._keepalive_expiry_s = keepalive_expiry_s
        self._open: dict[_Connection, None] = {}  # ordered by opening
        self._idle: dict[Origin, dict[_Connection, None]] = {}  # origin -> connections, the one used last at the end

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request and return once the head of the response is there."""
        loop = asyncio.get_running_loop()
        body = await request.aread()
        origin = _origin_of(request.url)
        connection = self._take_idle(origin, loop.time()) or await self._connect(origin, request)
        exchange = Exchange(request, loop)
        connection.send(exchange, body)
        return await exchange.response(extensions={"http_version": b"HTTP/1.1"})

    async def aclose(self) -> None:
        """Close all connections, those with unfinished answers too."""
        for connection in list(self._open):
            connection.hang_up()

    def opened(self, connection: "_Connection") -> None:
        """A connection was made."""
        self._open[connection] = None

    def release(self, connection: "_Connection") -> None:
        """A connection has finished an exchange and may carry another one."""
        self._idle.setdefault(connection.origin, {})[connection] = None

    def lost(self, connection: "_Connection") -> None:
        """A connection is gone."""
        self._open.pop(connection, None)
        self._idle.get(connection.origin, {}).pop(connection, None)

    def _take_idle(self, origin: Origin, now_s: float) -> "_Connection | None":
        idle = self._idle.get(origin, {})
        while idle:
            connection, _ = idle.popitem()
            if now_s - connection.idle_since_s <= self._keepalive_expiry_s:
                return connection
            connection.hang_up()
        return None

    async def _connect(self, origin: Origin, request: httpx.Request) -> "_Connection":
        if len(self._open) >= self._connections_max:
            raise httpx.PoolTimeout(f"{self._connections_max} connections are open, the most allowed", request=request)
        scheme, host, port = origin
        timeout_s: float | None = request.extensions.get("timeout", {}).get("connect")
        tls = self._tls_context() if scheme == b"https" else None
        try:
            async with asyncio.timeout(timeout_s):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: _Connection(self, origin),
                    host,
                    port,
                    ssl=tls,
                    server_hostname=host if tls is not None else None,
                    ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S if tls is not None else None,
                )
        except TimeoutError as error:
            message = f"no connection to {host}:{port} within {timeout_s} s"
            raise httpx.ConnectTimeout(message, request=request) from error
        except OSError as error:  # refused, unreachable, unknown host, TLS failure, too many open files
            raise httpx.ConnectError(f"{host}:{port}: {error}", request=request) from error
        return connection

    def _tls_context(self) -> ssl.SSLContext:
        if self._ssl_context is None:
            self._ssl_context = httpx.create_ssl_context()
        return self._ssl_context


class _Connection(asyncio.Protocol):
    """A connection that carries one exchange at a time. Also httptools' callback target."""

    __slots__ = (
        "_complete", "_exchange", "_framed", "_headers", "_keep_alive", "_owner", "_parser", "_status",
        "_transport", "idle_since_s", "origin",
    )  # fmt: skip

    def __init__(self, owner: PushTransport, origin: Origin) -> None:
        self.origin = origin
        self.idle_since_s = 0.0
        self._owner = owner
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._headers: list[tuple[bytes, bytes]] = []
        self._status = 0
        self._framed = False  # the head says where the body ends
        self._complete = False
        self._keep_alive = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: connected."""
        self._transport = cast(asyncio.Transport, transport)
        self._owner.opened(self)

    def send(self, exchange: Exchange, body: bytes) -> None:
        """Write the request and expect its response."""
        assert self._transport is not None
        self._exchange = exchange
        self._parser = httptools.HttpResponseParser(self)
        self._headers, self._status, self._framed, self._complete = [], 0, False, False
        exchange.begin(self)
        if self._transport.is_closing():
            self._broken(None)
            return
        self._transport.write(_head_of(exchange.request, len(body)) + body)

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes have arrived."""
        exchange, parser = self._exchange, self._parser
        if exchange is None or parser is None:
            self.hang_up()  # data without a request would be taken for the next answer
            return
        try:
            parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            message = f"the server's answer is no HTTP: {error or type(error).__name__}"
            exchange.fail(httpx.RemoteProtocolError(message, request=exchange.request))
            self.hang_up()
            return
        if self._complete:
            self._completed(exchange)

    def connection_lost(self, error: Exception | None) -> None:
        """asyncio: the connection is gone, by either side."""
        self._owner.lost(self)
        self._broken(error)

    def pause_reading(self) -> None:
        """Stop reading from the socket; the peer's window fills up."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def hang_up(self) -> None:
        """Close without sending what is still buffered."""
        if self._transport is not None:
            self._transport.abort()

    def on_header(self, name: bytes, value: bytes) -> None:
        """httptools: one header."""
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """httptools: the head is complete; 1xx heads announce another one."""
        assert self._parser is not None and self._exchange is not None
        self._status = self._parser.get_status_code()
        if self._status < 200:
            return
        self._framed = self._status in (204, 304) or any(_frames_body(*header) for header in self._headers)
        self._exchange.start(self._status, self._headers)
        if self._exchange.request.method == "HEAD":
            self._end_of_message()  # HEAD: Content-Length is the length of a body that does not come

    def on_body(self, body: bytes) -> None:
        """httptools: a piece of the body."""
        if self._exchange is not None:
            self._exchange.feed(body)

    def on_message_complete(self) -> None:
        """httptools: the message has ended."""
        if self._status < 200:
            self._headers = []
        else:
            self._end_of_message()

    def _end_of_message(self) -> None:
        assert self._parser is not None
        self._complete = True
        self._keep_alive = self._parser.should_keep_alive()  # the parser knows it in this callback only

    def _completed(self, exchange: Exchange) -> None:
        self._exchange = self._parser = None
        reusable = self._keep_alive and not exchange.ended and not exchange.reading_paused
        exchange.finish()
        if reusable:
            self.idle_since_s = asyncio.get_running_loop().time()
            self._owner.release(self)
        else:
            self.hang_up()

    def _broken(self, error: Exception | None) -> None:
        """Tell the exchange that its connection is gone; a body without framing ends just so."""
        exchange, self._exchange = self._exchange, None
        if exchange is None or exchange.ended:
            return
        if error is None and exchange.head.done() and not self._framed:
            exchange.finish()
        elif exchange.head.done():
            text = f"the server closed the connection in the middle of its answer{_because(error)}"
            exchange.fail(httpx.ReadError(text, request=exchange.request))
        else:
            text = f"the server closed the connection before it answered{_because(error)}"
            exchange.fail(httpx.RemoteProtocolError(text, request=exchange.request))


def _origin_of(url: httpx.URL) -> Origin:
    return (url.raw_scheme, url.host, url.port or (443 if url.raw_scheme == b"https" else 80))


def _head_of(request: httpx.Request, body_bytes: int) -> bytes:
    lines = [b"%b %b HTTP/1.1" % (request.method.encode("ascii"), request.url.raw_path)]
    lines += [b"%b: %b" % header for header in _sent_headers(request, body_bytes)]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def _sent_headers(request: httpx.Request, body_bytes: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the headers; a body given as an iterator is sent whole, with its length."""
    for name, value in request.headers.raw:
        if name.lower() == b"transfer-encoding":
            yield b"Content-Length", str(body_bytes).encode()
        else:
            yield name, value


def _frames_body(name: bytes, value: bytes) -> bool:
    lowered = name.lower()
    return lowered == b"content-length" or (lowered == b"transfer-encoding" and b"chunked" in value.lower())


def _because(error: Exception | None) -> str:
    return f" ({error})" if error is not None else ""
