"""`repro serve`: the engine in one thread, HTTP in the main thread."""

import asyncio
import errno
import math
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette
from tokenizers import Tokenizer

from repro.base.errors import HarnessError, UsageError
from repro.serve.server.app import create_app
from repro.serve.server.bridge import BridgedEngine, EngineFactory, EngineThread
from repro.serve.server.service import DEFAULT_LIMITS, Limits

KEEP_ALIVE_S = 120  # an agent thinks and runs its tools between two turns
BACKLOG_CONNECTIONS = 2048
PORT_MAX = 65535
ABORT_S = 5  # aborted requests have this long to answer their clients
ENGINE_STOP_S = 10.0  # a step in progress ends first


def serve(
    engine_factory: EngineFactory,
    tokenizer: Tokenizer,
    *,
    host: str = "127.0.0.1",
    port: int = 30000,
    clock: Callable[[], float],
    seed: int = 0,
    limits: Limits = DEFAULT_LIMITS,
    on_ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve until Ctrl-C or SIGTERM; call from the main thread.

    `engine_factory` runs in the engine's thread; `clock` returns Unix time in seconds. `on_ready` gets the
    URL once requests are answered; port 0 picks a free one. On Ctrl-C, requests in flight have `limits.grace_s`
    to end, then they are aborted; a second Ctrl-C drops them. Raises UsageError when the address can't
    be listened on (before the engine is built), and whatever the factory raises.
    """
    with bind(host, port) as listener:
        thread = EngineThread(engine_factory)
        engine = thread.start()
        try:
            app = create_app(engine, tokenizer, clock=clock, seed=seed, is_alive=lambda: engine.is_alive, limits=limits)
            with as_interrupt(signal.SIGTERM):
                HttpServer(app, engine, limits.grace_s, lambda: on_ready(url_of(listener))).run([listener])
        except KeyboardInterrupt:
            pass  # uvicorn has shut down and passes the signal on; this is the ordinary end
        finally:
            stopped = thread.stop(ENGINE_STOP_S)
    if not stopped:
        raise HarnessError(f"the engine did not stop within {ENGINE_STOP_S} s; its thread was left behind")


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises UsageError with one sentence that says what to do."""
    if not 0 <= port <= PORT_MAX:  # getaddrinfo would take it modulo 65536
        raise UsageError(f"cannot listen on {host}:{port}: expected a port from 0 to {PORT_MAX} with --port")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"cannot listen on {host}:{port}: {error}; check --host and --port") from error
    try:
        # Connections of a server that has just ended may linger; they don't own the port any more.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG_CONNECTIONS)
    except OSError as error:
        listener.close()
        raise UsageError(_bind_text(host, port, error)) from error
    return listener


def url_of(listener: socket.socket) -> str:
    """Return the URL that reaches a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class HttpServer(uvicorn.Server):
    """Uvicorn, telling when it is ready, and aborting what is still in flight when it must go."""

    def __init__(self, app: Starlette, engine: BridgedEngine, grace_s: float, on_ready: Callable[[], None]) -> None:
        config = uvicorn.Config(
            app,
            lifespan="off",
            ws="none",
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=math.ceil(grace_s) + ABORT_S,
        )
        super().__init__(config)
        self._engine = engine
        self._grace_s = grace_s
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to answer, then call the callback."""
        await super().startup(sockets)
        self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more requests; let those in flight end by themselves, then end them by an abort."""
        timer = asyncio.get_running_loop().call_later(self._grace_s, self._engine.abort_all)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()


def _bind_text(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"cannot listen on {host}:{port}: another program listens there; stop it, or choose another port "
            "with --port (0 picks a free one)"
        )
    if error.errno == errno.EACCES:
        return f"cannot listen on {host}:{port}: this port needs privileges; choose one above 1023 with --port"
    return f"cannot listen on {host}:{port}: {error}; check --host and --port"


@contextmanager
def as_interrupt(*signals: signal.Signals) -> Iterator[None]:
    """Let signals end a server as Ctrl-C does, so that all of it is stopped in order; ignored ones stay so (nohup)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.getsignal(each) for each in signals}
    taken = [each for each in signals if before[each] is not signal.SIG_IGN]
    for each in taken:
        signal.signal(each, signal.default_int_handler)
    try:
        yield
    finally:
        for each in taken:
            signal.signal(each, before[each])
