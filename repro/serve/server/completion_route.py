"""/v1/completions: a raw prompt in, its continuation out."""

from collections.abc import Iterator, Mapping, Sequence

from msgspec import Struct

from repro.serve.server.answers import Job, OpenAiAnswer, chosen_tokens, finite, stream_info
from repro.serve.server.errors import ApiError
from repro.serve.server.intake import answer_tokens_max, decode, openai_request, refuse_unless_off
from repro.serve.server.replies import TextChoice, TextLogprobs
from repro.serve.server.schema import CompletionRequest, completion_decoder
from repro.serve.server.service import Service
from repro.serve.server.vocabulary import Vocabulary
from repro.serve.types import Update

ANSWER_TOKENS = 16  # OpenAI's default


def read_completion(service: Service, raw: bytes, headers: Mapping[str, str]) -> Job:
    """Return the job of a text completion. Raises ApiError for whatever is wrong with it."""
    body = decode(completion_decoder, raw)
    service.check_model(body.model)
    refuse_unless_off(body, {"best_of": 1, "echo": False, "suffix": ""})
    request_id = service.request_id(body.rid, headers, "cmpl")
    context_tokens = service.engine.served.context_tokens
    tokens = prompt_tokens(service.vocabulary, body.prompt, context_tokens, "prompt")
    wanted = ANSWER_TOKENS if body.max_tokens is None else body.max_tokens
    max_tokens = answer_tokens_max(wanted, len(tokens), context_tokens, "prompt")
    request = openai_request(body, request_id, tokens, max_tokens, body.logprobs or 0, service.seed)
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


class CompletionAnswer(OpenAiAnswer[CompletionRequest]):
    """Writes one continuation, as a stream or whole."""

    reply_object = chunk_object = "text_completion"
    _offset = 0  # the next token begins here in the text

    def chunks(self, update: Update, elapsed_s: float) -> Iterator[Struct]:
        """Yield the new text, and after the last update the finish and the counts."""
        logprobs = self._logprobs([update])
        if update.text or (logprobs is not None and logprobs.tokens):
            yield self._chunk([TextChoice(update.text, logprobs, None)], meta_info=stream_info(update))
        if update.finish is not None:
            yield from self._ending(TextChoice("", None, update.finish, update.matched_stop), update)

    def whole(self, updates: Sequence[Update], elapsed_s: float) -> Struct:
        """Return the reply."""
        last = updates[-1]
        text = "".join(update.text for update in updates)
        return self._whole(TextChoice(text, self._logprobs(updates), last.finish, last.matched_stop), last)

    def _logprobs(self, updates: Sequence[Update]) -> TextLogprobs | None:
        if self._body.logprobs is None:
            return None
        lists, token_text = TextLogprobs([], [], [], []), self._vocabulary.token_text
        for update in updates:
            for token, logprob, tops in chosen_tokens(update):
                text = token_text(token)
                lists.tokens.append(text)
                lists.token_logprobs.append(finite(logprob))
                lists.text_offset.append(self._offset)
                self._offset += len(text)
                lists.top_logprobs.append({token_text(other): finite(score) for other, score in tops})
        return lists
