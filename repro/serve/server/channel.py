"""A bounded queue between two event loops in two threads."""

import asyncio
import threading
from collections import deque
from contextlib import suppress
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Channel(Generic[Item]):
    """A bounded queue from the engine's loop to the HTTP loop, or an error that ends it."""

    def __init__(
        self, reader_loop: asyncio.AbstractEventLoop, writer_loop: asyncio.AbstractEventLoop, items_max: int
    ) -> None:
        self._reader_loop = reader_loop
        self._writer_loop = writer_loop
        self._items_max = items_max
        self._lock = threading.Lock()  # guards everything below; held for a few instructions
        self._items: deque[Item] = deque()
        self._error: BaseException | None = None
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None

    async def put(self, item: Item) -> None:
        """Append an item, in the engine's loop; waits while the channel is full."""
        while True:
            with self._lock:
                if len(self._items) < self._items_max:
                    self._items.append(item)
                    self._wake_reader()
                    return
                waiter = self._writer = self._writer_loop.create_future()
            await waiter

    def fail(self, error: BaseException) -> None:
        """End the channel with an error, from any thread; what was put before is still read first."""
        with self._lock:
            self._error = self._error or error
            self._wake_reader()

    async def get(self) -> Item:
        """Return the next item, in the HTTP loop. Raises the error that ended the channel."""
        while True:
            with self._lock:
                if self._items:
                    writer, self._writer = self._writer, None
                    _wake(self._writer_loop, writer)
                    return self._items.popleft()
                if self._error is not None:
                    raise self._error
                waiter = self._reader = self._reader_loop.create_future()
            await waiter

    def _wake_reader(self) -> None:
        reader, self._reader = self._reader, None
        _wake(self._reader_loop, reader)


def _wake(loop: asyncio.AbstractEventLoop, waiter: "asyncio.Future[None] | None") -> None:
    """Let the waiter go on, in its own loop; a closed loop has no waiter."""
    if waiter is not None:
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(_release, waiter)


def _release(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)
