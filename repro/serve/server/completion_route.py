"""/v1/completions: a raw prompt in, its continuation out."""

from collections.abc import Iterator, Mapping, Sequence

import msgspec
from msgspec import UNSET, Struct, UnsetType

from repro.serve.server.answers import Job, extension, finite, stream_info, tops_of, usage, wants_usage
from repro.serve.server.errors import ApiError
from repro.serve.server.intake import answer_tokens_max, cache_key, decode, openai_sampling, refuse_unless_off
from repro.serve.server.replies import StreamInfo, TextChoice, TextLogprobs, TextReply
from repro.serve.server.schema import CompletionRequest, completion_decoder
from repro.serve.server.service import Service
from repro.serve.server.vocabulary import Vocabulary
from repro.serve.types import GenerateRequest, Update

ANSWER_TOKENS = 16  # OpenAI's default


def read_completion(service: Service, raw: bytes, headers: Mapping[str, str]) -> Job:
    """Return the job of a text completion. Raises ApiError for whatever is wrong with it."""
    body = decode(completion_decoder, raw)
    service.check_model(body.model)
    refuse_unless_off(body, {"best_of": 1, "echo": False, "suffix": ""})
    request_id = service.request_id(body.rid, headers, "cmpl")
    context_tokens = service.engine.context_length
    tokens = prompt_tokens(service.vocabulary, body.prompt, context_tokens, "prompt")
    asked = ANSWER_TOKENS if body.max_tokens is None else body.max_tokens
    max_tokens = answer_tokens_max(asked, len(tokens), context_tokens, "prompt")
    sampling = openai_sampling(body, request_id, max_tokens, body.logprobs or 0, service.seed)
    request = GenerateRequest(request_id, tuple(tokens), sampling, cache_key=cache_key(body))
    return Job(request, CompletionAnswer(service, body, request_id), bool(body.stream))


def prompt_tokens(vocabulary: Vocabulary, prompt: str | Sequence[object], context_tokens: int, param: str) -> list[int]:
    """Return the ids of a prompt: text, ids, or a list with one of them."""
    if not isinstance(prompt, str) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str):
        vocabulary.check_fits(len(prompt), context_tokens, param)
        return vocabulary.encode(prompt)
    ids = [token for token in prompt if isinstance(token, int)]
    if len(ids) != len(prompt):
        raise ApiError(f"{param}: one prompt per request, as text or as token ids; found a list", param=param)
    return ids


class CompletionAnswer:
    """Writes one continuation, as a stream or whole."""

    def __init__(self, service: Service, body: CompletionRequest, request_id: str) -> None:
        self._vocabulary = service.vocabulary
        self._model = service.engine.model_name
        self._body = body
        self._id = request_id
        self._created = int(service.clock())
        self._offset = 0  # where in the text the next token begins

    def chunks(self, update: Update, elapsed_s: float) -> Iterator[Struct]:
        """Yield the new text, and after the last update the finish and the counts."""
        logprobs = self._logprobs([update])
        if update.text or (logprobs is not None and logprobs.tokens):
            yield self._reply([TextChoice(update.text, logprobs, None)], stream_info(update))
        if update.finish is None:
            return
        yield self._reply([TextChoice("", None, update.finish, update.matched_stop)], stream_info(update))
        sglext = extension(self._body, update)
        if sglext is not UNSET:
            yield msgspec.structs.replace(self._reply([]), sglext=sglext)
        if wants_usage(self._body):
            yield msgspec.structs.replace(self._reply([]), usage=usage(update))

    def whole(self, updates: Sequence[Update], elapsed_s: float) -> Struct:
        """Return the reply."""
        last = updates[-1]
        text = "".join(update.text for update in updates)
        choice = TextChoice(text, self._logprobs(updates), last.finish, last.matched_stop)
        return msgspec.structs.replace(self._reply([choice]), usage=usage(last), sglext=extension(self._body, last))

    def _reply(self, choices: list[TextChoice], info: StreamInfo | UnsetType = UNSET) -> TextReply:
        counts = None if wants_usage(self._body) else UNSET
        return TextReply(self._id, self._created, self._model, choices, counts, meta_info=info)

    def _logprobs(self, updates: Sequence[Update]) -> TextLogprobs | None:
        if self._body.logprobs is None:
            return None
        lists = TextLogprobs([], [], [] if self._body.logprobs else None, [])
        for update in updates:
            for token, logprob, tops in zip(update.tokens, update.logprobs, tops_of(update), strict=True):
                self._add(lists, token, logprob, tops)
        return lists

    def _add(self, lists: TextLogprobs, token: int, logprob: float, tops: Sequence[tuple[int, float]]) -> None:
        text = self._vocabulary.token_text(token)
        lists.tokens.append(text)
        lists.token_logprobs.append(finite(logprob))
        lists.text_offset.append(self._offset)
        self._offset += len(text)
        if lists.top_logprobs is not None:
            lists.top_logprobs.append({self._vocabulary.token_text(other): finite(score) for other, score in tops})
