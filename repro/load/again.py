"""Asks a server some of its requests again, one at a time after the load, to see its undisturbed answers.

A foreign server has no clean decode of ours. But an answer that looks wrong under load and wrong alone,
on a cache that holds nothing of the load, is the model's own; one that looks wrong under load only is not.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import httpx
import msgspec

from repro.load.answer import Answer
from repro.load.client import Ask, ChatClient
from repro.load.exchange import Close, Pause
from repro.load.wire import Api, Piece
from repro.record.requests import SpecCounts

ASKED_AGAIN_MAX = 256  # with more suspects the server is at fault, not single answers
FLUSH_TRIES_MAX = 20  # a cache cannot be dropped before requests that were given up have ended
FLUSH_WAIT_S = 0.25


@dataclass
class AskedAgain:
    """Answers by the request that was asked again, without those that failed."""

    texts: dict[str, str] = field(default_factory=dict)
    counts: dict[str, list[SpecCounts]] = field(default_factory=dict)  # drafted answers only, in order of arrival
    flushed: bool = False  # the server had dropped its cache before it was asked


@dataclass(frozen=True)
class Asked:
    """A request of the load, and its answer as it grows."""

    ask: Ask
    answer: Answer


class RememberingClient(ChatClient):
    """A client that remembers what it asked and was answered; who needs an entry no more drops it from `asked`."""

    def __init__(
        self, http: httpx.AsyncClient, *, api: Api = "chat", extra: Mapping[str, Any] = MappingProxyType({})
    ) -> None:
        super().__init__(http, api=api, extra=extra)
        self.asked: dict[str, Asked] = {}

    async def ask(self, ask: Ask, watch: Callable[[Answer, Piece], Close | Pause | None], answer: Answer) -> None:
        """Remember the request and fill `answer`, as the base class does."""
        self.asked[ask.request] = Asked(ask, answer)
        await super().ask(ask, watch, answer)


async def ask_again(
    client: ChatClient,
    asks: Iterable[Ask],
    again: AskedAgain,
    done: Callable[[int, int], None] = lambda number, total: None,
) -> None:
    """Fill `again` with the server's answer to each of `asks` alone; may be cancelled at any point."""
    wanted = sorted(asks, key=lambda ask: ask.request)[:ASKED_AGAIN_MAX]  # the turns of a session follow each other
    again.flushed = bool(wanted) and await flush_cache(client)
    for number, ask in enumerate(wanted, 1):
        answer = Answer()
        counts: list[SpecCounts] = []
        alone = msgspec.structs.replace(ask, request=f"{ask.request}.again", abort_after_s=None)

        def watch(answer: Answer, piece: Piece, counts: list[SpecCounts] = counts) -> None:
            if piece.spec is not None:
                counts.append(piece.spec)

        await client.ask(alone, watch, answer)
        if not answer.error_kind:
            again.texts[ask.request] = answer.text
            if counts:
                again.counts[ask.request] = counts
        done(number, len(wanted))


async def flush_cache(client: ChatClient) -> bool:
    """Return whether the server has dropped all that it had cached, as SGLang and ours do when idle."""
    for _ in range(FLUSH_TRIES_MAX):
        try:
            response = await client.http.post("/flush_cache")
        except httpx.TransportError:
            return False
        if response.status_code != 400:  # 400: requests still run
            return response.status_code == 200
        await asyncio.sleep(FLUSH_WAIT_S)
    return False
