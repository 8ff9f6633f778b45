"""One HTTP exchange as both transports see it: the head, then chunks, pushed or pulled, then the end.

A request may carry `extensions={"sink": callable}`: then the chunks of a 2xx body are handed to it the
moment they arrive, in the event loop's own callback, and iterating over the body yields nothing and
only waits for its end. No task is woken per chunk. The sink answers with what should happen next.
Without a sink, chunks queue up to a bound and are iterated over as httpx users know it.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

import httpx
import msgspec

QUEUED_BYTES_MAX = 256 * 1024  # pull mode stops reading above it until the consumer has caught up
Head = tuple[int, list[tuple[bytes, bytes]]]


class Close(msgspec.Struct, frozen=True):
    """A sink's answer: enough, close the connection now. The body then ends without an error."""


class Pause(msgspec.Struct, frozen=True):
    """A sink's answer: read nothing for so long. The sender feels it as a slow reader."""

    seconds: float


Sink = Callable[[bytes], Close | Pause | None]  # None: go on


class Wire(Protocol):
    """What an exchange asks of the connection that carries it."""

    def pause_reading(self) -> None:
        """Take nothing more from the peer until resumed."""

    def resume_reading(self) -> None:
        """Read on."""

    def hang_up(self) -> None:
        """Close at once; the peer learns it. Idempotent."""


class Exchange(httpx.AsyncByteStream):
    """The state of one request; also the byte stream of its response."""

    # Slots: with a thousand streams every chunk finds its objects cold in the cache, so few lines count.
    __slots__ = (
        "_last_s", "_loop", "_paused", "_queue", "_queued_bytes", "_read_timeout_s", "_sink", "_throttled",
        "_timer", "_waiter", "_wire", "ended", "error", "head", "request",
    )  # fmt: skip

    def __init__(self, request: httpx.Request, loop: asyncio.AbstractEventLoop) -> None:
        self.request = request
        self.head: asyncio.Future[Head] = loop.create_future()
        self.ended = False
        self.error: Exception | None = None
        self._loop = loop
        self._sink: Sink | None = None
        self._wire: Wire | None = None
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._throttled = False  # reading is paused because the queue is full
        self._paused: asyncio.TimerHandle | None = None  # reading is paused because the sink asked for it
        self._waiter: asyncio.Future[None] | None = None
        self._read_timeout_s: float | None = request.extensions.get("timeout", {}).get("read")
        self._last_s = loop.time()
        self._timer: asyncio.TimerHandle | None = None

    async def response(self, **more: Any) -> httpx.Response:
        """Return the response once its head has arrived; a caller that is cancelled before hangs up."""
        try:
            status, headers = await self.head
        except asyncio.CancelledError:
            await self.aclose()
            raise
        return httpx.Response(status, headers=headers, stream=self, request=self.request, **more)

    def begin(self, wire: Wire) -> None:
        """The request is on its way over `wire`; from now on the read timeout counts."""
        self._wire = wire
        self._last_s = self._loop.time()
        if self._read_timeout_s is not None:
            self._timer = self._loop.call_at(self._last_s + self._read_timeout_s, self._check_timeout)

    def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """The head has arrived. Only a 2xx body is pushed; an error's body is left to be read with the error."""
        self._last_s = self._loop.time()
        if 200 <= status < 300:
            self._sink = self.request.extensions.get("sink")
        if not self.head.done():
            self.head.set_result((status, headers))

    def feed(self, chunk: bytes) -> None:
        """A piece of the body has arrived."""
        if self.ended:
            return
        self._last_s = self._loop.time()
        if self._sink is None:
            self._enqueue(chunk)
            return
        try:
            wanted = self._sink(chunk)
        except Exception as error:  # raised again where the body is awaited
            self.fail(error)
            self._hang_up()
            return
        if wanted is not None:
            self._obey(wanted)

    def finish(self) -> None:
        """The body is complete."""
        self._end(None)

    def fail(self, error: Exception) -> None:
        """The exchange is broken: waiting for head or body raises `error`, after what has arrived."""
        if not self.ended:
            self._end(error)
            if not self.head.done():
                self.head.set_exception(error)
                self.head.exception()  # marks it as retrieved: there may be no waiter any more

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the body's chunks (pull mode), or only wait for its end (push mode)."""
        while True:
            if self._queue:
                yield self._take()
            elif self.error is not None:
                raise self.error
            elif self.ended:
                return
            else:
                self._waiter = self._loop.create_future()
                await self._waiter

    async def aclose(self) -> None:
        """Stop. Before the end of the body this hangs up, which is how a client aborts."""
        if not self.ended:
            self._end(None)
            self._hang_up()

    @property
    def reading_paused(self) -> bool:
        """Whether nothing should be taken from the peer for now."""
        return self._throttled or self._paused is not None

    def _end(self, error: Exception | None) -> None:
        if self.ended:
            return
        self.ended = True
        self.error = error
        for timer in (self._timer, self._paused):
            if timer is not None:
                timer.cancel()
        self._paused = None
        self._wake()

    def _hang_up(self) -> None:
        if self._wire is not None:
            self._wire.hang_up()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _enqueue(self, chunk: bytes) -> None:
        self._queue.append(chunk)
        self._queued_bytes += len(chunk)
        if self._queued_bytes > QUEUED_BYTES_MAX and not self._throttled:
            self._throttled = True
            if self._wire is not None:
                self._wire.pause_reading()
        self._wake()

    def _take(self) -> bytes:
        chunk = self._queue.popleft() if len(self._queue) == 1 else b"".join(self._queue)
        self._queue.clear()
        self._queued_bytes = 0
        if self._throttled:
            self._throttled = False
            if self._wire is not None and not self.ended:
                self._wire.resume_reading()
        return chunk

    def _obey(self, wanted: Close | Pause) -> None:
        if isinstance(wanted, Close):
            self._end(None)
            self._hang_up()
        elif self._wire is not None and self._paused is None:
            self._wire.pause_reading()
            self._paused = self._loop.call_later(wanted.seconds, self._resume)

    def _resume(self) -> None:
        self._paused = None
        self._last_s = self._loop.time()
        if self._wire is not None and not self.ended:
            self._wire.resume_reading()

    def _check_timeout(self) -> None:
        """One timer a request, moved on lazily: arming one a chunk would cost more than the chunk."""
        assert self._read_timeout_s is not None
        due_s = self._last_s + self._read_timeout_s
        now_s = self._loop.time()
        if self.reading_paused or now_s < due_s:
            later_s = now_s + self._read_timeout_s if self.reading_paused else due_s
            self._timer = self._loop.call_at(later_s, self._check_timeout)
            return
        message = f"nothing was received for {self._read_timeout_s:g} s"
        self.fail(httpx.ReadTimeout(message, request=self.request))
        self._hang_up()
