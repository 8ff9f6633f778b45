"""One request inside the engine, from its arrival to its release."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from repro.serve.kv.radix.node import Node, TokenRun
from repro.serve.kv.stamps import Words, prefix_words
from repro.serve.kv.storage_tier import Prefetch
from repro.serve.sched.acceptance import Acceptance
from repro.serve.types import GenerateRequest, PromptScore, SamplingParams, Speculation, Update

Decode = Callable[[list[int]], str]
State = Literal["waiting", "running", "held", "finished"]  # held: computed here, decoded elsewhere

CHARACTER_TOKENS_MAX = 4  # a character of UTF-8 has at most four bytes, a token at least one
WINDOW_TOKENS_MAX = 8


@dataclass(eq=False)
class Request:
    """State of one request; the scheduler is its only writer.

    Tokens with a cache row:   [ 0 ... computed )          enqueued, maybe not run yet
    More, if drafts are right: [ computed ... computed + drafted )
    The block table's pages:   [ hit at admission | put into the tree since | own pages ]
                                 0 ... hit_pages .............. shared_pages
    """

    wire: GenerateRequest
    prompt: NDArray[np.int64]
    max_tokens: int  # the client's limit, or the rest of the context
    text: "TextStream"
    updates: asyncio.Queue[Update] = field(default_factory=asyncio.Queue)  # holds at most one update per answer token
    state: State = "waiting"
    row: int = -1
    pages: list[int] = field(default_factory=list)
    hit_pages: int = 0  # leading pages that the radix tree had when this request was admitted
    shared_pages: int = 0  # leading pages that the radix tree owns
    counted_pages: int = 0  # leading pages that count this request as a hit already
    hit_keys: TokenRun | None = None  # keys of its longest possible hit; None until they are built
    prefetch: Prefetch | None = None  # pages from storage that continue its prefix, on their way to the host
    node: Node | None = None  # the pinned node that holds the shared pages
    computed: int = 0  # tokens whose rows are stored by enqueued steps
    planned: int = 0  # answer tokens that enqueued steps will sample at least
    drafted: int = 0  # drafts of enqueued steps whose results are not known
    acceptance: Acceptance | None = None  # None without speculation
    output: list[int] = field(default_factory=list)
    replayed: int = 0  # answer tokens that are computed again, with the prompt: it was retracted after them
    retractions: int = 0
    scores: list[PromptScore] = field(default_factory=list)  # the prompt's, not sent to the client yet
    aborted: bool = False
    cached_device_tokens: int = 0
    cached_host_tokens: int = 0

    @property
    def id(self) -> str:
        return self.wire.id

    @cached_property
    def prompt_words(self) -> Words:
        """Return a word for each prefix of the prompt: the stamps that its rows ought to have."""
        return prefix_words(self.prompt)

    @property
    def sampling(self) -> SamplingParams:
        return self.wire.sampling

    @property
    def prefill(self) -> NDArray[np.int64]:
        """Return the tokens that are known before decoding: the prompt, and the replayed part of the answer."""
        return np.append(self.prompt, self.output[: self.replayed]) if self.replayed else self.prompt

    @property
    def prefill_tokens(self) -> int:
        return len(self.prompt) + self.replayed

    @property
    def prefilled(self) -> bool:
        return self.computed >= self.prefill_tokens

    @property
    def limit(self) -> int:
        """Return how many tokens prompt and longest answer have together."""
        return len(self.prompt) + self.max_tokens

    @property
    def tokens(self) -> TokenRun:
        """Return prompt and answer so far."""
        return np.append(self.prompt, np.asarray(self.output, np.int64))

    @property
    def speculation(self) -> Speculation | None:
        """Return the counts of speculation as they are now; None without speculation."""
        return None if self.acceptance is None else self.acceptance.counts(len(self.output))

    def retract(self) -> None:
        """Forget all but the answer so far: the request is to be admitted again."""
        self.state, self.row, self.node, self.pages = "waiting", -1, None, []
        self.prefetch = self.hit_keys = None
        self.hit_pages = self.shared_pages = self.computed = 0
        self.planned = self.replayed = len(self.output)
        self.scores = []  # the client has them with the first token, or they are computed again
        self.retractions += 1


class TextStream:
    """Turns tokens into text as they come: holds back incomplete UTF-8 and possible stop strings.

    A window of the latest tokens is decoded again with each new one. Of its text only a last U+FFFD may
    still change: it can be the beginning of a character.
    """

    def __init__(self, decode: Decode, stop: tuple[str, ...]) -> None:
        self._decode = decode
        self._stop = stop
        self._window: list[int] = []
        self._settled = 0  # characters of the window's text that were taken already
        self._held = ""  # text not given out yet: it may begin a stop string

    def push(self, token: int) -> tuple[str, str | None]:
        """Return the text that the client may have now, and the stop string that ended it, if any."""
        self._window.append(token)
        text = self._decode(self._window)
        fresh = text[self._settled : _stable_characters(text)]
        self._settled += len(fresh)
        if len(self._window) >= WINDOW_TOKENS_MAX:
            del self._window[:-CHARACTER_TOKENS_MAX]
            self._settled = _stable_characters(self._decode(self._window))
        return self._release(fresh)

    def flush(self) -> str:
        """Return the text that is still held back; the answer ends here."""
        text = self._decode(self._window)
        rest, self._held = self._held + text[self._settled :], ""
        self._settled = len(text)
        return rest

    def _release(self, fresh: str) -> tuple[str, str | None]:
        text = self._held + fresh
        found = [(text.index(stop), stop) for stop in self._stop if stop in text]
        if found:
            place, stop = min(found)
            self._held = ""
            return text[:place], stop
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], None


def _stable_characters(text: str) -> int:
    """Return how many characters of a decoded text no further token can change."""
    return len(text) - text.endswith("\ufffd")


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of `text` could begin `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
