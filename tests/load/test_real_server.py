"""The same client and driver over real sockets: uvicorn on an ephemeral port, asyncio and uvloop."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable

import pytest
import uvicorn
import uvloop

from repro.load.client import open_client
from repro.load.driver import drive
from repro.load.faults import Abort, ClientAction, ClientPoint, SlowReader
from repro.load.plan import LoadPlan
from tests.load.stubs import ChatStub, read_request, tcp_server
from tests.load.test_driver import Seen, session

Loop = Callable[[], asyncio.AbstractEventLoop]
LOOPS: list[Loop] = [asyncio.new_event_loop, uvloop.new_event_loop]


@contextlib.asynccontextmanager
async def served(stub: ChatStub) -> AsyncIterator[str]:
    """Run uvicorn in this loop and yield its URL."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    config = uvicorn.Config(stub, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    task = asyncio.create_task(server.serve(sockets=[listening]))
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        await task


@pytest.mark.parametrize("loop", LOOPS)
def test_a_load_over_real_http_with_aborts_and_slow_readers(loop: Loop) -> None:
    def faults(point: ClientPoint, actor: str) -> ClientAction | None:
        number = int(actor.removeprefix("s"))
        if point == "client.abort" and number % 3 == 0:
            return Abort(after_tokens=2)
        return SlowReader(0.01) if point == "client.slow_reader" and number % 3 == 1 else None

    async def main() -> None:
        stub = ChatStub(token_s=0.002, prefill_s=0.01)
        seen = Seen()
        async with served(stub) as url:
            client = open_client(url)
            async with client.http:
                sessions = [session(f"s{number}", 3, tokens=20) for number in range(30)]
                plan = LoadPlan(concurrency=10, time_scale=0, faults=faults)
                result = await drive(sessions, client, plan, seen)
                while stub.active:
                    await asyncio.sleep(0.01)
        assert (result.requests, result.answered, result.aborted, result.errors) == (90, 60, 30, {})
        assert {record.text for record in seen.records if record.finish == "abort"} == {"w0 w1 "}
        assert sorted(name for name, _ in stub.disconnects) == sorted(
            record.request for record in seen.records if record.finish == "abort"
        )
        assert result.lag.count > 3 and result.ttft.p50_s >= 0.01

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())


@pytest.mark.parametrize("loop", LOOPS)
def test_a_server_that_dies_under_load_is_reported_and_given_up(loop: Loop) -> None:
    async def main() -> None:
        answered = 0

        async def dying(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal answered
            await read_request(reader)
            answered += 1
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")

        async with tcp_server(dying) as url:
            client = open_client(url)
            sessions = [session(f"s{number}", 5) for number in range(50)]
            plan = LoadPlan(concurrency=4, retries_max=0, time_scale=0)
            result = await drive(sessions, client, plan)
            await client.http.aclose()
        assert result.target_lost.startswith("died: ")
        assert set(result.errors) <= {"died", "client"} and answered < 50

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())


def test_a_rate_ceiling_holds_back_requests() -> None:
    async def main() -> None:
        stub = ChatStub(token_s=0, prefill_s=0)
        async with served(stub) as url:
            client = open_client(url)
            async with client.http:
                sessions = [session(f"s{number}", 1) for number in range(25)]
                result = await drive(sessions, client, LoadPlan(concurrency=25, rate_max_per_s=20))
        assert result.answered == 25 and result.duration_s > 0.9

    asyncio.run(main())
