"""The engine in a thread and event loop of its own, and the same engine as the HTTP loop sees it.

    HTTP loop                               engine loop (virtual time)
    BridgedEngine.generate  --submit-->     task: async for update in engine.generate(...)
          Channel.get       <--updates--          Channel.put   (waits while the channel is full)
          closed or cancelled --cancel-->   the task ends, its iterator is closed, the engine aborts

A failed engine fails every open channel, so nobody waits for an answer that will never come.
"""

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from repro.serve.server.channel import Channel
from repro.serve.server.errors import EngineFailedError
from repro.serve.types import EngineStats, GenerateRequest, RejectedError, ServedModel, ServingEngine, Update

logger = logging.getLogger(__name__)

CHANNEL_UPDATES_MAX = 256  # per request: a client that reads this far behind holds its engine task back


@dataclass(frozen=True)
class HostedEngine:
    """What the engine thread runs: an engine, the loop it lives in, and its main coroutine.

    `run` steps the engine until it is cancelled; if it ends or raises before that, the engine has failed.
    """

    loop: asyncio.AbstractEventLoop
    engine: ServingEngine
    run: Callable[[], Coroutine[Any, Any, None]]


EngineFactory = Callable[[], HostedEngine]  # called in the engine's thread


class EngineThread:
    """Owns the thread. The engine is alive from `start` until `stop`, or until it fails."""

    def __init__(self, factory: EngineFactory) -> None:
        self._factory = factory
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)
        self._built = threading.Event()
        self._hosted: HostedEngine | None = None
        self._main_task: asyncio.Task[None] | None = None
        self._stopping = False
        self._lock = threading.Lock()  # guards the two below
        self._error: BaseException | None = None
        self._channels: dict[int, Channel[Any]] = {}
        self._opened = 0

    def start(self) -> "BridgedEngine":
        """Build the engine in its thread and return its bridge. Raises what the factory raises."""
        self._thread.start()
        self._built.wait()
        if self._hosted is None:
            raise self._error or EngineFailedError("the engine was not built")
        return BridgedEngine(self, self._hosted)

    def stop(self, timeout_s: float) -> bool:
        """Cancel the engine's main coroutine; False if the thread still runs after `timeout_s`."""
        self._stopping = True
        if self._hosted is not None:
            with suppress(RuntimeError):  # the loop has closed in the meantime
                self._hosted.loop.call_soon_threadsafe(self._cancel_main)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def is_alive(self) -> bool:
        """Return whether requests can still be answered."""
        return self._error is None

    @contextmanager
    def channel(self, reader_loop: asyncio.AbstractEventLoop) -> Iterator[tuple[int, Channel[Any]]]:
        """Open a channel that fails when the engine does. Raises EngineFailedError if it already has."""
        if self._hosted is None:
            raise EngineFailedError("the engine is not running")
        opened: Channel[Any] = Channel(reader_loop, self._hosted.loop, CHANNEL_UPDATES_MAX)
        with self._lock:
            if self._error is not None:
                raise _failed(self._error)
            self._opened += 1
            number = self._opened
            self._channels[number] = opened
        try:
            yield number, opened
        finally:
            with self._lock:
                del self._channels[number]

    def _main(self) -> None:
        try:
            hosted = self._factory()
            with asyncio.Runner(loop_factory=lambda: hosted.loop) as runner:
                runner.get_loop()
                self._hosted = hosted
                self._built.set()
                runner.run(self._run(hosted))
            self._end(EngineFailedError("the engine was stopped"))
        except BaseException as error:  # stored: every open and later request fails with it
            if self._hosted is not None:  # before that, `start` raises it
                logger.error("the engine has failed", exc_info=error)
            self._end(error)
        finally:
            self._built.set()

    async def _run(self, hosted: HostedEngine) -> None:
        self._main_task = asyncio.ensure_future(hosted.run())
        try:
            await self._main_task
        except asyncio.CancelledError:
            if not self._stopping:
                raise
        if not self._stopping:
            raise EngineFailedError("the engine's main loop ended by itself")

    def _cancel_main(self) -> None:
        if self._main_task is not None:
            self._main_task.cancel()

    def _end(self, error: BaseException) -> None:
        with self._lock:
            self._error = error
            channels = list(self._channels.values())
        for channel in channels:
            channel.fail(_failed(error))


class BridgedEngine:
    """A ServingEngine for the HTTP loop; the work is done in the engine's thread."""

    def __init__(self, thread: EngineThread, hosted: HostedEngine) -> None:
        self._thread = thread
        self._loop = hosted.loop
        self._engine = hosted.engine
        self._tasks: dict[int, asyncio.Task[None]] = {}  # belongs to the engine's loop
        self._requests: dict[int, str] = {}  # ids by channel; belongs to the HTTP loop

    @property
    def is_alive(self) -> bool:
        """Return whether the engine still works; true in the middle of a step."""
        return self._thread.is_alive

    @property
    def served(self) -> ServedModel:
        """Return the model and its limits."""
        return self._engine.served

    def stats(self) -> EngineStats:
        """Return the counters. Read across threads: plain numbers, each right, maybe of different moments."""
        return self._engine.stats()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Update, None]:
        """Submit and stream. Raises EngineFailedError once the engine has failed; closing aborts."""
        finished = False
        with self._thread.channel(asyncio.get_running_loop()) as (number, channel):
            self._call(self._start, number, partial(self._feed, request, channel))
            self._requests[number] = request.id
            try:
                while not finished:
                    update: Update = await channel.get()
                    finished = update.finish is not None
                    yield update
            finally:
                del self._requests[number]
                if not finished:
                    with suppress(EngineFailedError):
                        self._call(self._cancel, number)

    def abort(self, request_id: str) -> None:
        """Abort at any stage; unknown ids are ignored."""
        with suppress(EngineFailedError):
            # call_soon a second time: a request that is just being submitted gets there first.
            self._call(self._loop.call_soon, self._engine.abort, request_id)

    def abort_all(self) -> None:
        """Abort every request that was submitted through this bridge."""
        for request_id in list(self._requests.values()):
            self.abort(request_id)

    async def flush_cache(self) -> bool:
        """Drop all cached prefixes between two steps; False while requests run."""
        with self._thread.channel(asyncio.get_running_loop()) as (number, channel):
            self._call(self._start, number, partial(self._flush, channel))
            return bool(await channel.get())

    def _call(self, function: Callable[..., object], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError as error:  # its loop is closed
            raise EngineFailedError("the engine has stopped") from error

    def _start(self, number: int, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        task = self._tasks[number] = self._loop.create_task(work())
        task.add_done_callback(lambda _: self._tasks.pop(number))

    def _cancel(self, number: int) -> None:
        if number in self._tasks:
            self._tasks[number].cancel()

    async def _feed(self, request: GenerateRequest, channel: Channel[Update]) -> None:
        try:
            stream = cast(AsyncGenerator[Update, None], self._engine.generate(request))
            async with aclosing(stream):
                async for update in stream:
                    await channel.put(update)
            # Read only if no update said that it was the last.
            channel.fail(EngineFailedError(f"the engine ended request {request.id} without saying why"))
        except RejectedError as error:
            channel.fail(error)
        except Exception as error:
            channel.fail(_failed(error))

    async def _flush(self, channel: Channel[bool]) -> None:
        try:
            await channel.put(await self._engine.flush_cache())
        except Exception as error:
            channel.fail(_failed(error))


def _failed(error: BaseException) -> EngineFailedError:
    """Return an error of its own for each request: a raised one collects the raiser's frames."""
    is_ours = isinstance(error, EngineFailedError)
    failed = EngineFailedError(str(error) if is_ours else f"the engine failed with {type(error).__name__}: {error}")
    failed.__cause__ = error
    return failed
