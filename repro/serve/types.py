"""What goes into the engine and what comes out of it."""

from collections.abc import AsyncIterator
from typing import Literal, Protocol

import msgspec

FinishReason = Literal["stop", "length", "abort"]


class SamplingParams(msgspec.Struct, frozen=True):
    """How to choose tokens. Temperature 0 is greedy; `seed` makes sampling repeatable."""

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    top_logprobs: int = 0  # at most 20


class GenerateRequest(msgspec.Struct, frozen=True):
    """One generation: prompt tokens and how to continue them."""

    id: str
    tokens: tuple[int, ...]
    sampling: SamplingParams = SamplingParams()
    score_from: int | None = None  # log-probabilities of the prompt's tokens behind this one are wanted; None: not
    cache_key: str = ""  # only requests of the same key share cached prefixes (SGLang's extra_key)


class Speculation(msgspec.Struct, frozen=True):
    """How the drafts of one answer fared so far."""

    completion_tokens: int
    histogram: tuple[int, ...]  # verify steps by how many of their drafts were accepted, 0 to all
    windows: tuple[float, ...]  # tokens per verify step, for each whole window of 64 tokens

    @property
    def verify_steps(self) -> int:
        return sum(self.histogram)

    @property
    def accepted_drafts(self) -> int:
        return sum(drafts * steps for drafts, steps in enumerate(self.histogram))

    @property
    def drafts(self) -> int:
        return self.verify_steps * (len(self.histogram) - 1)

    @property
    def accept_length(self) -> float | None:
        """Return tokens per verify step; None before the first."""
        return self.completion_tokens / self.verify_steps if self.verify_steps else None

    @property
    def accept_rate(self) -> float | None:
        """Return the share of drafts that was accepted; None before the first."""
        return self.accepted_drafts / self.drafts if self.drafts else None


class PromptScore(msgspec.Struct, frozen=True):
    """How likely the model finds one token of the prompt, given those before it; `top` are the likeliest there."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class Update(msgspec.Struct, frozen=True):
    """New tokens of a request. The last update carries `finish` and the counts.

    `text` is what these tokens add to the answer, cut at a stop string; incomplete UTF-8 waits.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...] = ()
    finish: FinishReason | None = None
    matched_stop: str | int | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_device_tokens: int = 0  # prefix tokens found on the device
    cached_host_tokens: int = 0  # prefix tokens loaded back from the host tier
    speculation: Speculation | None = None  # in each update while speculation is on
    scores: tuple[PromptScore, ...] = ()  # scores of the prompt, in the first update, if the request wants them


class RejectedError(Exception):
    """The engine can't take the request; `status` is the HTTP status that says so.

    400: longer than the model's limit, or no tokens, or token ids outside the vocabulary.
    503: the waiting queue is full.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class EngineStats(msgspec.Struct, frozen=True):
    """Counters and gauges for /metrics and /server_info; token counts unless named otherwise."""

    running_requests: int
    waiting_requests: int
    device_used: int
    device_total: int
    host_used: int
    host_total: int
    prompt_tokens_total: int
    generation_tokens_total: int
    cached_device_tokens_total: int
    load_back_tokens_total: int
    evicted_tokens_total: int
    aborted_requests_total: int
    steps_total: int
    verify_steps_total: int = 0  # summed over requests: a step verifies one window for each of its members
    drafts_total: int = 0
    accepted_drafts_total: int = 0


class ServedModel(msgspec.Struct, frozen=True):
    """What an engine serves; fixed as long as it runs."""

    name: str
    context_tokens: int  # the most that prompt and answer may have together
    scores_prompts: bool  # whether `score_from` is honoured; if not, `Update.scores` stays empty
    description: dict[str, object]  # the configuration for /server_info, JSON-serialisable


class ServingEngine(Protocol):
    """What the HTTP server needs of an engine, in the server's own event loop."""

    @property
    def served(self) -> ServedModel:
        """Return the model and its limits."""

    def generate(self, request: GenerateRequest) -> AsyncIterator[Update]:
        """Submit and stream. Raises RejectedError before the first update. Closing the iterator aborts."""

    def abort(self, request_id: str) -> None:
        """Abort at any stage; unknown ids are ignored."""

    async def flush_cache(self) -> bool:
        """Drop all cached prefixes on all tiers; False (and no change) while requests run."""

    def stats(self) -> EngineStats:
        """Return the current counters."""
