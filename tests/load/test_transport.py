"""The push transport against a TCP server that follows a script: every way to end, and none hangs."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import httpx
import pytest
import uvloop

from repro.load.exchange import Close, Pause, Sink
from repro.load.transport import PushTransport
from tests.load.stubs import Script, chunked, read_request, tcp_server

Test = Callable[[], Awaitable[None]]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Callable[[Awaitable[None]], None]]:
    """Run a test's coroutine on one of the two loops, never longer than 20 s."""
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    def run_on(main: Awaitable[None]) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(20):
                await main

        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(bounded())

    yield run_on


Run = Callable[[Awaitable[None]], None]


def client(url: str, transport: PushTransport | None = None, **timeouts: float) -> httpx.AsyncClient:
    timeout = httpx.Timeout(5.0, **timeouts)
    return httpx.AsyncClient(base_url=url, transport=transport or PushTransport(), timeout=timeout)


async def push(http: httpx.AsyncClient, sink: Sink) -> httpx.Response:
    """POST with a sink, and wait for the end of the body."""
    request = http.build_request("POST", "/x", content=b"{}", extensions={"sink": sink})
    response = await http.send(request, stream=True)
    async with asyncio.timeout(5):
        pulled = [chunk async for chunk in response.aiter_raw()]
    assert pulled == []
    await response.aclose()
    return response


def answering(*writes: bytes, close: bool = False) -> Script:
    """Answer each request of a connection with these bytes."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            for write in writes:
                writer.write(write)
                await writer.drain()
                await asyncio.sleep(0.002)
            if close:
                return

    return script


def test_chunks_are_pushed_as_they_arrive(run: Run) -> None:
    async def main() -> None:
        seen: list[bytes] = []
        first_seen = asyncio.Event()

        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            writer.write(chunked(b"one", end=False))
            await asyncio.wait_for(first_seen.wait(), 5)  # never sends the second before the first was seen
            writer.write(b"3\r\ntwo\r\n0\r\n\r\n")

        def sink(chunk: bytes) -> None:
            seen.append(chunk)
            first_seen.set()

        async with tcp_server(script) as url, client(url) as http:
            await push(http, sink)
        assert seen == [b"one", b"two"]

    run(main())


def test_without_a_sink_the_body_is_pulled_as_usual(run: Run) -> None:
    async def main() -> None:
        async with tcp_server(answering(chunked(b"a" * 1000, b"b" * 1000))) as url, client(url) as http:
            assert (await http.post("/", content=b"x")).content == b"a" * 1000 + b"b" * 1000

    run(main())


def test_connections_are_reused_and_expire(run: Run) -> None:
    async def main() -> None:
        connections: list[int] = []

        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connections.append(1)
            await answering(chunked(b"x"))(reader, writer)

        transport = PushTransport(keepalive_expiry_s=0.1)
        async with tcp_server(script) as url, client(url, transport) as http:
            for _ in range(5):
                await push(http, lambda chunk: None)
            assert len(connections) == 1
            await asyncio.gather(*(push(http, lambda chunk: None) for _ in range(3)))
            assert len(connections) == 3
            await asyncio.sleep(0.15)
            await push(http, lambda chunk: None)
            assert len(connections) == 4

    run(main())


def test_a_connection_closed_by_the_server_is_not_used_again(run: Run) -> None:
    async def main() -> None:
        async with tcp_server(answering(chunked(b"x"), close=True)) as url:
            transport = PushTransport()
            async with client(url, transport) as http:
                for _ in range(5):
                    await push(http, lambda chunk: None)
                    while transport._open:
                        await asyncio.sleep(0.002)

    run(main())


@pytest.mark.parametrize(
    ("written", "error", "said"),
    [
        (chunked(b"half", end=False), httpx.ReadError, "in the middle"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", httpx.ReadError, "in the middle"),
        (b"HTTP/1.1 200 OK\r\nCont", httpx.RemoteProtocolError, "before it answered"),
        (b"", httpx.RemoteProtocolError, "before it answered"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", httpx.RemoteProtocolError, "no HTTP"),
        (chunked(end=False) + b"zz\r\n", httpx.RemoteProtocolError, "no HTTP"),
    ],
)
def test_a_server_that_dies_or_talks_nonsense_is_an_httpx_error(
    run: Run, written: bytes, error: type[Exception], said: str
) -> None:
    async def main() -> None:
        async with tcp_server(answering(written, close=True)) as url, client(url) as http:
            with pytest.raises(error, match=said):
                await push(http, lambda chunk: None)

    run(main())


def test_what_arrived_before_the_end_is_delivered(run: Run) -> None:
    async def main() -> None:
        seen: list[bytes] = []
        async with tcp_server(answering(chunked(b"half", end=False), close=True)) as url, client(url) as http:
            with pytest.raises(httpx.ReadError):
                await push(http, seen.append)
            assert seen == [b"half"]
            with pytest.raises(httpx.ReadError):
                await http.post("/", content=b"")

    run(main())


def test_a_body_without_length_ends_with_the_connection(run: Run) -> None:
    async def main() -> None:
        written = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\nall of it"
        seen: list[bytes] = []
        async with tcp_server(answering(written, close=True)) as url, client(url) as http:
            await push(http, seen.append)
        assert b"".join(seen) == b"all of it"

    run(main())


def test_informational_heads_are_skipped(run: Run) -> None:
    async def main() -> None:
        early = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
        async with tcp_server(answering(early + chunked(b"x"))) as url, client(url) as http:
            response = await http.post("/", content=b"")
            assert (response.status_code, response.content, "link" in response.headers) == (200, b"x", False)

    run(main())


def test_an_error_body_is_not_pushed(run: Run) -> None:
    async def main() -> None:
        written = b"HTTP/1.1 400 Bad\r\nContent-Length: 3\r\n\r\nwhy"
        seen: list[bytes] = []
        async with tcp_server(answering(written)) as url, client(url) as http:
            request = http.build_request("POST", "/", content=b"", extensions={"sink": seen.append})
            response = await http.send(request)
            assert (response.status_code, response.content, seen) == (400, b"why", [])

    run(main())


def test_a_head_request_and_an_empty_answer_end_at_the_head(run: Run) -> None:
    async def main() -> None:
        written = b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n"
        async with tcp_server(answering(written)) as url, client(url) as http:
            for _ in range(3):
                assert (await http.head("/")).headers["content-length"] == "50"
        async with tcp_server(answering(b"HTTP/1.1 204 No Content\r\n\r\n")) as url, client(url) as http:
            for _ in range(3):
                assert (await http.post("/", content=b"x")).status_code == 204

    run(main())


def test_refused_and_unknown_hosts_are_connect_errors(run: Run) -> None:
    async def main() -> None:
        async with tcp_server(answering(b"")) as url:
            pass
        for base in (url, "http://no-such-host.invalid"):
            async with client(base) as http:
                with pytest.raises(httpx.ConnectError):
                    await http.post("/", content=b"")

    run(main())


def test_silence_is_a_read_timeout_and_slow_but_steady_is_not(run: Run) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        await asyncio.sleep(30)

    async def steady(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(chunked(end=False))
        for _ in range(8):
            await asyncio.sleep(0.1)
            writer.write(b"1\r\nx\r\n")
        writer.write(b"0\r\n\r\n")

    async def main() -> None:
        for script in (silent, steady):
            seen: list[bytes] = []
            async with tcp_server(script) as url, client(url, read=0.3) as http:
                if script is silent:
                    with pytest.raises(httpx.ReadTimeout, match="nothing was received for 0.3 s"):
                        await push(http, seen.append)
                else:
                    await push(http, seen.append)
                    assert b"".join(seen) == b"x" * 8

    run(main())


def test_a_sink_that_says_close_hangs_up_at_once(run: Run) -> None:
    async def main() -> None:
        lost: asyncio.Future[float] = asyncio.get_running_loop().create_future()

        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            writer.write(chunked(b"one", b"two", b"three", end=False))
            with contextlib.suppress(ConnectionError):
                await reader.read()
            lost.set_result(asyncio.get_running_loop().time())

        seen: list[bytes] = []

        def sink(chunk: bytes) -> Close | None:
            seen.append(chunk)
            return Close() if len(seen) == 2 else None

        transport = PushTransport()
        async with tcp_server(script) as url, client(url, transport) as http:
            await push(http, sink)
            await asyncio.wait_for(lost, 5)
            assert seen == [b"one", b"two"] and not transport._open

    run(main())


def test_a_cancelled_request_hangs_up_whether_or_not_the_head_was_there(run: Run) -> None:
    async def main() -> None:
        lost: asyncio.Queue[bool] = asyncio.Queue()

        def script_of(head: bytes) -> Script:
            async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await read_request(reader)
                writer.write(head)
                with contextlib.suppress(ConnectionError):
                    await reader.read()
                lost.put_nowait(True)

            return script

        for head in (b"", chunked(b"x", end=False)):
            async with tcp_server(script_of(head)) as url, client(url) as http:
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.1):
                        await http.post("/", content=b"")
                assert await asyncio.wait_for(lost.get(), 5)

    run(main())


def test_a_slow_reader_stops_the_sender(run: Run) -> None:
    async def main() -> None:
        sent = 0
        piece = b"x" * 65536

        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal sent
            await read_request(reader)
            writer.write(chunked(end=False))
            for _ in range(400):
                writer.write(b"10000\r\n" + piece + b"\r\n")
                await writer.drain()
                sent += len(piece)
            writer.write(b"0\r\n\r\n")

        got = 0
        sent_during_pause: list[int] = []

        def sink(chunk: bytes) -> Pause | None:
            nonlocal got
            got += len(chunk)
            if not sent_during_pause:
                sent_during_pause.append(0)
                loop = asyncio.get_running_loop()
                loop.call_later(0.4, lambda: sent_during_pause.append(sent))
                return Pause(0.5)
            return None

        async with tcp_server(script) as url, client(url) as http:
            await push(http, sink)
        assert got == 400 * 65536
        assert sent_during_pause[1] < 300 * 65536  # socket buffers took some, not all of 25 MB

    run(main())


def test_pull_mode_holds_back_a_sender_that_nobody_reads(run: Run) -> None:
    async def main() -> None:
        sent = 0

        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal sent
            await read_request(reader)
            writer.write(chunked(end=False))
            for _ in range(400):
                writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
                await writer.drain()
                sent += 65536
            writer.write(b"0\r\n\r\n")

        async with (
            tcp_server(script) as url,
            client(url) as http,
            http.stream("POST", "/", content=b"") as response,
        ):
            await asyncio.sleep(0.3)
            assert sent < 300 * 65536
            assert sum([len(chunk) async for chunk in response.aiter_raw()]) == 400 * 65536

    run(main())


def test_what_a_sink_raises_comes_out_of_the_request(run: Run) -> None:
    def sink(chunk: bytes) -> None:
        raise ValueError("cannot read this")

    async def main() -> None:
        async with tcp_server(answering(chunked(b"x", b"y"))) as url, client(url) as http:
            with pytest.raises(ValueError, match="cannot read this"):
                await push(http, sink)

    run(main())


def test_too_many_connections_are_refused_with_the_number(run: Run) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def main() -> None:
        async with tcp_server(silent) as url, client(url, PushTransport(connections_max=2)) as http:
            held = [asyncio.create_task(http.post("/", content=b"")) for _ in range(2)]
            await asyncio.sleep(0.1)
            with pytest.raises(httpx.PoolTimeout, match="2 connections are open"):
                await http.post("/", content=b"")
            for task in held:
                task.cancel()

    run(main())


def test_an_iterated_request_body_is_sent_whole(run: Run) -> None:
    bodies: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        bodies.append((await read_request(reader))[1])
        writer.write(chunked(b"ok"))

    async def parts() -> AsyncIterator[bytes]:
        yield b"one "
        yield b"two"

    async def main() -> None:
        async with tcp_server(script) as url, client(url) as http:
            await http.post("/", content=parts())
        assert bodies == [b"one two"]

    run(main())


def test_tls_is_spoken_and_a_wrong_certificate_is_a_connect_error(run: Run, tmp_path: Path) -> None:
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server_context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)

    async def main() -> None:
        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            writer.write(chunked(b"secret"))

        server = await asyncio.start_server(script, "127.0.0.1", 0, ssl=server_context)
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with client(url, PushTransport(ssl_context=trusting)) as http:
            assert (await http.post("/", content=b"")).content == b"secret"
        async with client(url, PushTransport()) as http:
            with pytest.raises(httpx.ConnectError, match="certificate"):
                await http.post("/", content=b"")
        server.close()

    run(main())
