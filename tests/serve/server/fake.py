"""A ServingEngine that streams the tokens it is told to, and remembers what was asked of it."""

import asyncio
from collections.abc import AsyncGenerator, Callable

from tokenizers import Tokenizer

from repro.serve.types import (
    EngineStats,
    FinishReason,
    GenerateRequest,
    RejectedError,
    ServedModel,
    Update,
)

MODEL = "fake-glm"
PAUSE_S = 0.001


class FakeEngine:
    """Answers every request with `answer`'s tokens, one update per token, `pause_s` before each."""

    def __init__(self, tokenizer: Tokenizer, answer: str = "def f():\n    return 'é'\n") -> None:
        self.tokenizer = tokenizer
        self.answer = answer
        self.pause_s = PAUSE_S
        self.failure: Exception | None = None  # raised instead of the next token
        self.fail_after = 0  # tokens given before the failure
        self.busy = False
        self.context = 2048
        self.tells_scores = False
        self.gate: Callable[[], asyncio.Event] | None = None  # waited for before the first token
        self.requests: list[GenerateRequest] = []
        self.running: dict[str, asyncio.Event] = {}
        self.aborted: list[str] = []

    @property
    def served(self) -> ServedModel:
        return ServedModel(MODEL, self.context, self.tells_scores, {"config": "fake", "page_tokens": 64})

    def stats(self) -> EngineStats:
        return EngineStats(len(self.running), 2, 640, 1280, 64, 4096, 1000, 300, 400, 128, 192, 5, 77)

    async def flush_cache(self) -> bool:
        await asyncio.sleep(0)
        return not self.running

    def abort(self, request_id: str) -> None:
        if request_id in self.running:
            self.running[request_id].set()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Update, None]:
        if self.busy:
            raise RejectedError("the waiting queue is full", 503)
        size = self.tokenizer.get_vocab_size()
        if not request.tokens or max(request.tokens) >= size:
            raise RejectedError("token ids outside the vocabulary", 400)
        self.requests.append(request)
        aborted = self.running[request.id] = asyncio.Event()
        finished = False
        try:
            async for update in self._updates(request, aborted):
                finished = update.finish is not None
                yield update
        finally:
            del self.running[request.id]
            if not finished:
                self.aborted.append(request.id)

    async def _updates(self, request: GenerateRequest, aborted: asyncio.Event) -> AsyncGenerator[Update, None]:
        if self.gate is not None:
            waits = [asyncio.ensure_future(event.wait()) for event in (self.gate(), aborted)]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        ids = self.tokenizer.encode(self.answer, add_special_tokens=False).ids
        limit = request.sampling.max_tokens
        shown = ""
        for index, token in enumerate(ids[:limit]):
            await asyncio.sleep(self.pause_s)
            if self.failure is not None and index >= self.fail_after:
                raise self.failure
            if aborted.is_set():
                yield self._last(request, (), "", "abort", None, index)
                return
            text = self.tokenizer.decode(ids[: index + 1], skip_special_tokens=False)
            text = text if not text.endswith("\ufffd") else shown
            stops = [stop for stop in request.sampling.stop if stop in text]
            if stops:
                text = text[: text.index(stops[0])]
            fresh, shown = text[len(shown) :], text
            if stops:
                yield self._last(request, (token,), fresh, "stop", stops[0], index + 1)
                return
            if index + 1 == len(ids[:limit]):
                finish: FinishReason = "length" if limit < len(ids) else "stop"
                yield self._last(request, (token,), fresh, finish, None, index + 1)
                return
            yield Update((token,), (-0.5,), fresh, self._tops(request, token))

    def _last(
        self, request: GenerateRequest, tokens: tuple[int, ...], text: str,
        finish: FinishReason, stop: str | None, count: int,
    ) -> Update:  # fmt: skip
        tops = self._tops(request, *tokens)
        prompt = len(request.tokens)
        return Update(tokens, (-0.5,) * len(tokens), text, tops, finish, stop, prompt, count, 3, 2)

    def _tops(self, request: GenerateRequest, *tokens: int) -> tuple[tuple[tuple[int, float], ...], ...]:
        wanted = request.sampling.top_logprobs
        others = tuple((20 + n, -1.0 - n) for n in range(wanted - 1))
        return tuple(((token, -0.5), *others) for token in tokens) if wanted else ()
