"""What the generation routes share: the job that a request becomes, and the envelope of OpenAI's answers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from msgspec import UNSET, Struct, UnsetType

from repro.serve.server.replies import (
    CachedDetails,
    ChunkChoice,
    Extension,
    OpenAiReply,
    PromptDetails,
    StreamInfo,
    TextChoice,
    Usage,
)
from repro.serve.server.schema import OpenAiRequest
from repro.serve.server.service import Service
from repro.serve.types import GenerateRequest, Update

LOGPROB_MIN = -9999.0  # what OpenAI writes for an impossible token; JSON has no infinity

Body = TypeVar("Body", bound=OpenAiRequest)


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


class OpenAiAnswer(Generic[Body]):
    """The envelope of one OpenAI answer, chat or text."""

    reply_object: str  # the `object` of a whole reply
    chunk_object: str

    def __init__(self, service: Service, body: Body, request_id: str) -> None:
        self._vocabulary = service.vocabulary
        self._model = service.engine.served.name
        self._body = body
        self._id = request_id
        self._created = int(service.clock())
        self._wants_usage = body.stream_options is not None and bool(body.stream_options.include_usage)

    def _chunk(
        self,
        choices: Sequence[Struct],
        usage: Usage | None = None,
        sglext: Extension | UnsetType = UNSET,
        meta_info: StreamInfo | UnsetType = UNSET,
    ) -> OpenAiReply:
        """Return one event; where counts are wanted, `usage` is null until the chunk that carries them."""
        counts = usage if self._wants_usage else UNSET
        return OpenAiReply(self._id, self._created, self._model, choices, counts, sglext, meta_info, self.chunk_object)

    def _ending(self, choice: ChunkChoice | TextChoice, last: Update) -> Iterator[OpenAiReply]:
        """Yield the events that end a stream: the finish, SGLang's extension and the counts where wanted."""
        yield self._chunk([choice], meta_info=stream_info(last))
        sglext = self._extension(last)
        if sglext is not UNSET:
            yield self._chunk([], sglext=sglext)
        if self._wants_usage:
            yield self._chunk([], usage=usage_of(last))

    def _whole(self, choice: Struct, last: Update) -> OpenAiReply:
        sglext = self._extension(last)
        return OpenAiReply(
            self._id, self._created, self._model, [choice], usage_of(last), sglext, UNSET, self.reply_object
        )

    def _extension(self, last: Update) -> Extension | UnsetType:
        return Extension(cached_details(last)) if self._body.return_cached_tokens_details else UNSET


def usage_of(last: Update) -> Usage:
    """Return the counts that a request's last update carries."""
    total = last.prompt_tokens + last.completion_tokens
    cached = PromptDetails(last.cached_device_tokens + last.cached_host_tokens)
    return Usage(last.prompt_tokens, last.completion_tokens, total, cached)


def cached_details(update: Update) -> CachedDetails:
    """Return the cached tokens by tier."""
    return CachedDetails(update.cached_device_tokens, update.cached_host_tokens)


def stream_info(update: Update) -> StreamInfo | UnsetType:
    """Return the running counts of speculation, nothing when it is off."""
    counts = update.speculation
    if counts is None:
        return UNSET
    return StreamInfo(counts.completion_tokens, counts.verify_steps, counts.accepted_drafts, counts.drafts)


def finite(logprob: float) -> float:
    """Return a log-probability that JSON can carry."""
    return logprob if logprob > LOGPROB_MIN else LOGPROB_MIN  # NaN also becomes LOGPROB_MIN


def chosen_tokens(update: Update) -> Iterator[tuple[int, float, Sequence[tuple[int, float]]]]:
    """Yield each token of an update with its log-probability and the likeliest tokens at its place, if asked for."""
    return zip(update.tokens, update.logprobs, update.top_logprobs or [()] * len(update.tokens), strict=True)
