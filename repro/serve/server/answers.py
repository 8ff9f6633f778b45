"""What the three generation routes share when they write answers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from msgspec import UNSET, Struct, UnsetType

from repro.serve.server.replies import CachedDetails, Extension, PromptDetails, StreamInfo, TokenLogprob, Usage
from repro.serve.server.schema import OpenAiRequest
from repro.serve.server.vocabulary import Vocabulary
from repro.serve.types import GenerateRequest, Update

LOGPROB_MIN = -9999.0  # what OpenAI writes for an impossible token; JSON has no infinity


class Answer(Protocol):
    """One route's way to write the updates of one request."""

    def chunks(self, update: Update, elapsed_s: float) -> Iterator[Struct]:
        """Yield the events that this update adds to a stream; after the last update, those that end it."""

    def whole(self, updates: Sequence[Update], elapsed_s: float) -> Struct:
        """Return the reply made of all updates."""


@dataclass(frozen=True)
class Job:
    """A request that has been read: what the engine shall do, and how the answer is written."""

    request: GenerateRequest
    answer: Answer
    stream: bool


def usage(last: Update) -> Usage:
    """Return the counts that a request's last update carries."""
    return Usage(
        last.prompt_tokens,
        last.completion_tokens,
        last.prompt_tokens + last.completion_tokens,
        PromptDetails(last.cached_device_tokens + last.cached_host_tokens),
    )


def cached_details(update: Update) -> CachedDetails:
    """Return the cached tokens by tier."""
    return CachedDetails(update.cached_device_tokens, update.cached_host_tokens)


def extension(body: OpenAiRequest, last: Update) -> Extension | UnsetType:
    """Return SGLang's extension object if the client asked for it."""
    return Extension(cached_details(last)) if body.return_cached_tokens_details else UNSET


def stream_info(update: Update) -> StreamInfo | UnsetType:
    """Return the running counts of speculation, nothing when it is off."""
    counts = update.speculation
    if counts is None:
        return UNSET
    return StreamInfo(counts.completion_tokens, counts.verify_steps, counts.accepted_drafts, counts.drafts)


def wants_usage(body: OpenAiRequest) -> bool:
    """Return whether the stream shall end with a chunk of counts."""
    return body.stream_options is not None and bool(body.stream_options.include_usage)


def token_logprob(vocabulary: Vocabulary, token: int, logprob: float) -> TokenLogprob:
    """Return one token with its log-probability, as OpenAI's chat API writes it."""
    text = vocabulary.token_text(token)
    return TokenLogprob(text, finite(logprob), list(vocabulary.token_bytes(token)))


def finite(logprob: float) -> float:
    """Return a log-probability that JSON can carry."""
    return logprob if logprob > LOGPROB_MIN else LOGPROB_MIN  # NaN also comes out as the least


def tops_of(update: Update) -> Sequence[Sequence[tuple[int, float]]]:
    """Return the likeliest tokens at each place of the update; empty lists when none were asked for."""
    return update.top_logprobs or [()] * len(update.tokens)
