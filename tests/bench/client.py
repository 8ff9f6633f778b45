"""Print how many slow streams the load client holds on one core, and how late it is itself.

Run: python -m tests.bench.client [--streams 1024] [--interval-ms 20] [--seconds 6] [--url http://...]

A stub server in a process of its own (or any at --url that speaks the same) streams one token a chunk
and stamps each with its monotonic send time in `system_fingerprint` ("t" and nanoseconds). The lag of a
chunk is the time from its stamp until the whole client path is done with it: socket, HTTP, events, JSON,
watch. Plain httpx runs beside it at a count that it can hold. Client and stub have a core each where
there are two; with less, the figures are of both.
"""

import argparse
import asyncio
import contextlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import httpx
import msgspec
import uvloop
from rich.table import Table

from repro.load.answer import Answer
from repro.load.client import Ask, ChatClient, open_client
from repro.load.exchange import Close, Pause
from repro.load.lag import Histogram, LagMeter, Quantiles
from repro.load.transport import PushTransport
from tests.bench.results import add_record, show

STAMP_MARK = b'"system_fingerprint":"t'
STAMP_DIGITS = 20
WARM_UP_S = 1.5  # connecting is not measured
SAMPLED_ONE_IN = 7  # no divisor of a number of streams that is a power of two
TICK_S = 0.001
PLAIN_STREAMS_MAX = 128
GOAL_P99_MS = 5.0
PREEMPTED_QUIET_PER_S = 50.0
MESSAGE = b'{"role":"user","content":"bench"}'


class Figures(msgspec.Struct):
    """One row."""

    name: str
    streams: int
    held: int
    chunks_per_s: float
    chunk_lag: Quantiles
    loop_lag: Quantiles
    cpu_ms_per_1000: float
    preempted_per_s: float  # how often another program took the core


class Meter:
    """Counts chunks, and measures the lag of one in seven, so that it costs little itself."""

    def __init__(self) -> None:
        self.lag = Histogram()
        self.chunks = 0
        self.from_ns = sys.maxsize
        self.cpu_from_s = 0.0
        self.preempted_from = 0

    def begin(self) -> None:
        """The warm-up is over."""
        self.chunks = 0
        self.from_ns = time.monotonic_ns()
        self.cpu_from_s = cpu_s()
        self.preempted_from = preempted()

    def preempted_per_s(self, seconds: float) -> float:
        """Return how often since the warm-up another program took the core."""
        return (preempted() - self.preempted_from) / seconds

    def look(self, chunk: bytes) -> None:
        """A chunk has just been dealt with; should it hold several tokens, the first is measured."""
        self.chunks += 1
        if self.chunks % SAMPLED_ONE_IN:
            return
        start = chunk.find(STAMP_MARK) + len(STAMP_MARK)
        if start >= len(STAMP_MARK):
            sent_ns = int(chunk[start : start + STAMP_DIGITS])
            if sent_ns >= self.from_ns:
                self.lag.add((time.monotonic_ns() - sent_ns) / 1e9)


class MeteredPush(PushTransport):
    """The push transport with a meter behind each sink."""

    def __init__(self, meter: Meter) -> None:
        super().__init__()
        self._meter = meter

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Wrap the request's sink and send it."""
        sink = request.extensions["sink"]
        meter = self._meter

        def metered(chunk: bytes) -> Close | Pause | None:
            wanted: Close | Pause | None = sink(chunk)
            meter.look(chunk)
            return wanted

        request.extensions["sink"] = metered
        return await super().handle_async_request(request)


class MeteredPlain(httpx.AsyncHTTPTransport):
    """httpx as it comes, with a meter where the client has taken a chunk."""

    def __init__(self, meter: Meter) -> None:
        super().__init__(limits=httpx.Limits(max_connections=None, max_keepalive_connections=None))
        self._meter = meter

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send, and meter the response's stream."""
        response = await super().handle_async_request(request)
        assert isinstance(response.stream, httpx.AsyncByteStream)
        response.stream = _MeteredStream(response.stream, self._meter)
        return response


class _MeteredStream(httpx.AsyncByteStream):
    def __init__(self, stream: httpx.AsyncByteStream, meter: Meter) -> None:
        self._stream = stream
        self._meter = meter

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            yield chunk
            self._meter.look(chunk)  # resumed: the consumer is done with it

    async def aclose(self) -> None:
        await self._stream.aclose()


def cpu_s() -> float:
    """Return the processor time of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def preempted() -> int:
    """Return how often the system has taken the core from this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


async def measure(
    name: str, url: str, transport: httpx.AsyncBaseTransport, meter: Meter, plan: argparse.Namespace
) -> Figures:
    """Hold the streams for the planned time and return the figures."""
    client = open_client(url, transport=transport)
    lag = LagMeter()
    tokens = int((plan.seconds + 2 * WARM_UP_S) * 1000 / plan.interval_ms)
    answers = [Answer() for _ in range(plan.streams)]
    async with client.http:
        tasks = [asyncio.create_task(_held(client, answer, number, tokens)) for number, answer in enumerate(answers)]
        await asyncio.sleep(WARM_UP_S)
        lag.start()
        meter.begin()
        start_s = time.monotonic()
        await asyncio.sleep(plan.seconds)
        wall_s, cpu = time.monotonic() - start_s, cpu_s() - meter.cpu_from_s
        lag.stop()
        held = sum(answer.first_s >= 0 and not answer.finish for answer in answers)
        chunks, taken = meter.chunks, meter.preempted_per_s(plan.seconds)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    per_1000 = cpu * 1e6 / max(1, chunks)
    lags = (meter.lag.summary(), lag.histogram.summary())
    return Figures(name, plan.streams, held, chunks / wall_s, *lags, per_1000, taken)


class BareSink(asyncio.Protocol):
    """Counts what arrives and reads nothing of it: what the system and the loop cost on this machine."""

    def __init__(self, meter: Meter, tokens: int) -> None:
        self._meter = meter
        self._tokens = tokens

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        body = b'{"max_tokens":%d,"stream":true,"messages":[]}' % self._tokens
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
        self.transport: asyncio.WriteTransport = transport  # type: ignore[assignment]
        self.transport.write(head + body)

    def data_received(self, data: bytes) -> None:
        self._meter.look(data)


async def measure_floor(url: str, meter: Meter, plan: argparse.Namespace) -> Figures:
    """Hold the streams with bare protocols; the floor under every client here."""
    loop, where, lag = asyncio.get_running_loop(), httpx.URL(url), LagMeter()
    tokens = int((plan.seconds + 2 * WARM_UP_S) * 1000 / plan.interval_ms)
    sinks = []
    for _ in range(plan.streams):
        sinks.append(await loop.create_connection(lambda: BareSink(meter, tokens), where.host, where.port or 80))
    await asyncio.sleep(WARM_UP_S)
    lag.start()
    meter.begin()
    await asyncio.sleep(plan.seconds)
    cpu, chunks, taken = cpu_s() - meter.cpu_from_s, meter.chunks, meter.preempted_per_s(plan.seconds)
    lag.stop()
    for transport, _ in sinks:
        transport.abort()
    chunk_lag, loop_lag = meter.lag.summary(), lag.histogram.summary()
    per_1000 = cpu * 1e6 / max(1, chunks)
    name = "bare protocol, uvloop (floor)"
    return Figures(name, plan.streams, plan.streams, chunks / plan.seconds, chunk_lag, loop_lag, per_1000, taken)


async def _held(client: ChatClient, answer: Answer, number: int, tokens: int) -> None:
    await asyncio.sleep(number * 0.0005)  # a crowd at one instant would measure the listen backlog
    await client.ask(Ask(f"bench-{number}", (MESSAGE,), tokens), lambda answer, piece: None, answer)


class StubStream(asyncio.Protocol):
    """The stub server's side of a connection: answers any POST with a token every interval."""

    def __init__(self, streams: "StubClock") -> None:
        self._clock = streams
        self._head = b""
        self._left = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.WriteTransport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self._head += data
        head, mark, body = self._head.partition(b"\r\n\r\n")
        if mark and len(body) >= _content_length(head):
            self._head = b""
            self._left = json.loads(body)["max_tokens"]
            self.transport.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            )
            self._clock.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._left = 0

    def tick(self) -> bool:
        """Send one token; False when this was the last one or the client is gone."""
        if self._left <= 0 or self.transport.is_closing():
            return False
        self._left -= 1
        finish = b"null" if self._left else b'"length"'
        event = (
            b'data: {"id":"bench","object":"chat.completion.chunk","created":1,"model":"stub",'
            b'%b%020d","choices":[{"index":0,"delta":{"content":" token"},"finish_reason":%b}]}\n\n'
        ) % (STAMP_MARK, time.monotonic_ns(), finish)
        end = b"" if self._left else b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
        self.transport.write(b"%x\r\n%b\r\n%b" % (len(event), event, end))
        return self._left > 0


class StubClock:
    """Spreads the streams over the interval and ticks them."""

    def __init__(self, interval_s: float) -> None:
        self._slots: list[list[StubStream]] = [[] for _ in range(max(1, round(interval_s / TICK_S)))]
        self._next = 0
        self._due_s = asyncio.get_running_loop().time()

    def add(self, stream: StubStream) -> None:
        """Give a stream its place: the slot with the fewest."""
        min(self._slots, key=len).append(stream)

    def run(self) -> None:
        """Tick one slot and come back."""
        loop = asyncio.get_running_loop()
        slot = self._next % len(self._slots)
        self._slots[slot] = [stream for stream in self._slots[slot] if stream.tick()]
        self._next += 1
        self._due_s = max(self._due_s + TICK_S, loop.time() - 0.1)
        loop.call_at(self._due_s, self.run)


def _content_length(head: bytes) -> int:
    lengths = [line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    return int(lengths[0]) if lengths else 0


async def serve(interval_ms: float) -> None:
    """Run the stub until killed; prints its URL."""
    clock = StubClock(interval_ms / 1000)
    server = await asyncio.get_running_loop().create_server(lambda: StubStream(clock), "127.0.0.1", 0, backlog=4096)
    clock.run()
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


@contextlib.contextmanager
def stub_server(interval_ms: float) -> Iterator[str]:
    """Start the stub in a process of its own and yield its URL."""
    command = [sys.executable, "-m", "tests.bench.client", "--serve", "--interval-ms", str(interval_ms)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def pin(core: int) -> None:
    """Keep this process on one core, where the system can and has two."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(cores) > 1:
        os.sched_setaffinity(0, {cores[core % len(cores)]})


def run_on(loop: Callable[[], asyncio.AbstractEventLoop], main: Awaitable[Figures]) -> Figures:
    """Run one measurement on a fresh loop."""

    async def awaited() -> Figures:
        return await main

    with asyncio.Runner(loop_factory=loop) as runner:
        return runner.run(awaited())


def rows(url: str, plan: argparse.Namespace) -> Iterator[Figures]:
    """Yield the figures of each client, the floor first."""
    meter = Meter()
    yield run_on(uvloop.new_event_loop, measure_floor(url, meter, plan))
    few = argparse.Namespace(**{**vars(plan), "streams": min(plan.streams, PLAIN_STREAMS_MAX)})
    for name, loop in (
        ("push transport, uvloop", uvloop.new_event_loop),
        ("push transport, asyncio", asyncio.new_event_loop),
    ):
        meter = Meter()
        yield run_on(loop, measure(name, url, MeteredPush(meter), meter, plan))
    meter = Meter()
    yield run_on(uvloop.new_event_loop, measure("httpx as it comes, uvloop", url, MeteredPlain(meter), meter, few))


def shown(figures: list[Figures], plan: argparse.Namespace) -> Iterator[Table | str]:
    """Yield the table, and what spoils its figures."""
    table = Table(title=f"one token every {plan.interval_ms:g} ms a stream, {plan.seconds:g} s after warm-up, one core")
    for column in (
        "client",
        "streams",
        "held",
        "chunks/s",
        "lag p50 ms",
        "lag p99 ms",
        "lag max ms",
        "loop lag p99 ms",
        "CPU ms/1000 chunks",
        "preempted/s",
    ):
        table.add_column(column, justify="left" if column == "client" else "right")
    for row in figures:
        lag = [
            f"{value * 1000:.2f}"
            for value in (row.chunk_lag.p50_s, row.chunk_lag.p99_s, row.chunk_lag.max_s, row.loop_lag.p99_s)
        ]
        table.add_row(
            row.name,
            str(row.streams),
            str(row.held),
            f"{row.chunks_per_s:,.0f}",
            *lag,
            f"{row.cpu_ms_per_1000:.1f}",
            f"{row.preempted_per_s:.0f}",
        )
    yield table
    floor_ms, taken = figures[0].chunk_lag.p99_s * 1000, max(row.preempted_per_s for row in figures)
    if floor_ms > GOAL_P99_MS:
        yield (f"The floor's own p99 is {floor_ms:.1f} ms: too busy a machine to judge a client by its lag.")
    if taken > PREEMPTED_QUIET_PER_S:
        yield (f"Other programs took the core up to {taken:.0f} times a second: repeat on a quiet machine.")


def allow_open_files(count: int) -> int:
    """Raise this process's limit of open files towards `count`; return the limit now in force."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return count if soft == resource.RLIM_INFINITY else soft


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=1024)
    parser.add_argument("--interval-ms", type=float, default=20.0)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--url", help="a stub that is already running; it must stamp its chunks as this one does")
    parser.add_argument("--serve", action="store_true", help="be the stub server")
    add_record(parser)
    plan = parser.parse_args()
    limit = allow_open_files(4 * plan.streams + 256)
    if limit < plan.streams + 64:
        sys.exit(f"only {limit} open files are allowed; run `ulimit -n {plan.streams + 64}` first")
    pin(1 if plan.serve else 0)
    if plan.serve:
        with (
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
            contextlib.suppress(KeyboardInterrupt),
        ):
            runner.run(serve(plan.interval_ms))
        return
    with contextlib.nullcontext(plan.url) if plan.url else stub_server(plan.interval_ms) as url:
        show(plan, *shown(list(rows(url, plan)), plan))


if __name__ == "__main__":
    main()
