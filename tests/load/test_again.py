"""Suspects are asked again alone, on a dropped cache, and what fails is left out."""

import asyncio
from typing import Any

import pytest

from repro.base.clock import run_virtual
from repro.load.again import ASKED_AGAIN_MAX, FLUSH_TRIES_MAX, AskedAgain, RememberingClient, ask_again
from repro.load.answer import Answer
from repro.load.asgi import AsgiStreamTransport, Message
from repro.load.client import Ask, open_client
from tests.idle import IdleWorld
from tests.load.stubs import ChatStub, Receive, Send, reply


class FlushingStub(ChatStub):
    """A chat server whose cache can be dropped once it has refused `busy` times; `status` for one that can't."""

    def __init__(self, *, busy: int = 0, status: int = 200) -> None:
        super().__init__()
        self.busy, self.status = busy, status
        self.flushes = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["path"] != "/flush_cache":
            await super().__call__(scope, receive, send)
            return
        assert self.active == 0
        self.flushes += 1
        await reply(send, 400 if self.flushes <= self.busy else self.status, {})


def asked_again(stub: ChatStub, *asks: Ask) -> AskedAgain:
    said = AskedAgain()

    async def main() -> None:
        client = RememberingClient(open_client("http://stub", transport=AsgiStreamTransport(stub)).http)
        async with client.http:
            await ask_again(client, asks, said)

    run_virtual(main(), IdleWorld())
    return said


def ask(name: str = "s:0", text: str = "say", **changes: Any) -> Ask:
    return Ask(name, (b'{"role":"user","content":"%b"}' % text.encode(),), 2, **changes)


def test_suspects_are_asked_one_at_a_time_after_the_cache_was_dropped() -> None:
    stub = FlushingStub(busy=2)
    said = asked_again(stub, ask("b:1"), ask("a:0", abort_after_s=0.001))
    assert said == AskedAgain({"a:0": "w0 w1 ", "b:1": "w0 w1 "}, flushed=True)
    assert stub.active_max == 1 and stub.flushes == 3
    assert [name for _, name in stub.arrivals] == ["a:0.again", "b:1.again"]


@pytest.mark.parametrize("stub", [FlushingStub(status=404), FlushingStub(busy=FLUSH_TRIES_MAX)])
def test_a_server_that_keeps_its_cache_is_asked_all_the_same(stub: FlushingStub) -> None:
    assert asked_again(stub, ask()) == AskedAgain({"s:0": "w0 w1 "}, flushed=False)


def test_what_fails_is_left_out() -> None:
    assert asked_again(FlushingStub(), ask("a", "refuse"), ask("b")).texts == {"b": "w0 w1 "}


def test_without_suspects_the_cache_is_left_alone() -> None:
    stub = FlushingStub()
    assert asked_again(stub) == AskedAgain() and stub.flushes == 0


def test_there_is_a_bound() -> None:
    said = asked_again(FlushingStub(), *(ask(f"s:{number:04}") for number in range(ASKED_AGAIN_MAX + 3)))
    assert len(said.texts) == ASKED_AGAIN_MAX


def test_a_keeping_client_keeps_what_it_asked() -> None:
    async def main() -> dict[str, tuple[Ask, str]]:
        client = RememberingClient(open_client("http://stub", transport=AsgiStreamTransport(ChatStub())).http)
        async with client.http:
            await asyncio.gather(*(client.ask(ask(name), lambda answer, piece: None, Answer()) for name in "ab"))
        return {name: (asked.ask, asked.answer.finish) for name, asked in client.asked.items()}

    assert run_virtual(main(), IdleWorld()) == {"a": (ask("a"), "stop"), "b": (ask("b"), "stop")}
