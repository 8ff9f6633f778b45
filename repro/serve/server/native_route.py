"""/generate, as SGLang has it: text or token ids in; text, ids and `meta_info` out."""

from collections.abc import Iterator, Mapping, Sequence

import msgspec
from msgspec import UNSET, Struct

from repro.serve.server.answers import Job, cached_details, chosen_tokens, finite
from repro.serve.server.completion_route import prompt_tokens
from repro.serve.server.errors import ApiError
from repro.serve.server.intake import answer_tokens_max, decode, native_sampling
from repro.serve.server.replies import InputLogprob, MetaInfo, NativeFinish, NativeLogprob, NativeReply
from repro.serve.server.schema import NativeRequest, NativeSampling, native_decoder
from repro.serve.server.service import Service
from repro.serve.types import GenerateRequest, Speculation, Update


def read_native(service: Service, raw: bytes, headers: Mapping[str, str]) -> Job:
    """Return the job of a /generate request. Raises ApiError for whatever is wrong with it."""
    body = decode(native_decoder, raw)
    if (body.text is None) == (body.input_ids is None):
        raise ApiError("send exactly one of text and input_ids", param="text")
    asked = body.sampling_params or NativeSampling()
    request_id = service.request_id(body.rid, headers, "generate")
    context_tokens = service.engine.served.context_tokens
    param = "text" if body.input_ids is None else "input_ids"
    prompt = body.text if body.text is not None else body.input_ids or ""
    tokens = prompt_tokens(service.vocabulary, prompt, context_tokens, param)
    max_tokens = answer_tokens_max(asked.max_new_tokens, len(tokens), context_tokens, param)
    tops = body.top_logprobs_num if body.return_logprob else 0
    sampling = native_sampling(asked, request_id, max_tokens, tops, service.seed)
    score_from = _score_from(service, body, len(tokens))
    request = GenerateRequest(request_id, tuple(tokens), sampling, score_from, body.extra_key or "")
    return Job(request, NativeAnswer(service, body, request), body.stream)


def _score_from(service: Service, body: NativeRequest, prompt_tokens: int) -> int | None:
    """Return the place in the prompt from which log-probabilities are wanted; None: no prompt scores."""
    start = body.logprob_start_len
    if not body.return_logprob or start == -1:
        return None
    if not service.engine.served.scores_prompts:
        text = "logprob_start_len: this configuration tells no log-probabilities of prompts; send -1"
        raise ApiError(text, param="logprob_start_len", code="unsupported_value")
    if not 0 <= start <= prompt_tokens:
        text = f"logprob_start_len: {start} is not between -1 and the {prompt_tokens} tokens of the prompt"
        raise ApiError(text, param="logprob_start_len", code="invalid_value")
    return start


class NativeAnswer:
    """Writes one answer; each event of a stream repeats the whole answer so far, as SGLang does."""

    def __init__(self, service: Service, body: NativeRequest, request: GenerateRequest) -> None:
        self._vocabulary = service.vocabulary
        self._logprobs_wanted = body.return_logprob
        self._request = request
        self._text = ""
        self._tokens: list[int] = []
        self._logprobs: list[NativeLogprob] = []
        self._tops: list[list[NativeLogprob]] = []
        self._input_logprobs: list[InputLogprob] = []
        self._input_tops: list[list[NativeLogprob] | None] = []
        start = request.score_from
        if start is not None and start < len(request.tokens):  # no token before it predicts it
            first = request.tokens[start]
            self._input_logprobs.append((None, first, self._vocabulary.token_text(first)))
            self._input_tops.append(None)

    def chunks(self, update: Update, elapsed_s: float) -> Iterator[Struct]:
        """Yield the answer so far."""
        self._add(update)
        yield self._reply(update, elapsed_s)

    def whole(self, updates: Sequence[Update], elapsed_s: float) -> Struct:
        """Return the reply."""
        for update in updates:
            self._add(update)
        return self._reply(updates[-1], elapsed_s)

    def _add(self, update: Update) -> None:
        self._text += update.text
        self._tokens += update.tokens
        if not self._logprobs_wanted:
            return
        for token, logprob, tops in chosen_tokens(update):
            self._logprobs.append(self._logprob(token, logprob))
            self._tops.append([self._logprob(*top) for top in tops])
        for score in update.scores:
            self._input_logprobs.append(self._logprob(score.token, score.logprob))
            self._input_tops.append([self._logprob(*top) for top in score.top])

    def _logprob(self, token: int, logprob: float) -> NativeLogprob:
        return (finite(logprob), token, self._vocabulary.token_text(token))

    def _reply(self, update: Update, elapsed_s: float) -> NativeReply:
        tops_wanted = self._request.sampling.top_logprobs > 0
        details = cached_details(update)
        info = MetaInfo(
            self._request.id,
            _finish(update, len(self._tokens)),
            len(self._request.tokens),
            update.completion_tokens if update.finish is not None else len(self._tokens),
            details.device + details.host,
            details,
            elapsed_s,
            self._logprobs if self._logprobs_wanted else UNSET,
            self._tops if tops_wanted else UNSET,
            input_token_logprobs=self._input_logprobs if self._request.score_from is not None else UNSET,
            input_top_logprobs=self._input_tops if tops_wanted and self._request.score_from is not None else UNSET,
        )
        return NativeReply(self._text, self._tokens, _with_speculation(info, update.speculation))


def _with_speculation(info: MetaInfo, counts: Speculation | None) -> MetaInfo:
    if counts is None:
        return info
    return msgspec.structs.replace(
        info,
        spec_verify_ct=counts.verify_steps,
        spec_accept_token_num=counts.accepted_drafts,
        spec_draft_token_num=counts.drafts,
        spec_accept_histogram=counts.histogram,
        spec_accept_windows=counts.windows,
        spec_accept_length=UNSET if counts.accept_length is None else counts.accept_length,
        spec_accept_rate=UNSET if counts.accept_rate is None else counts.accept_rate,
    )


def _finish(update: Update, tokens: int) -> NativeFinish | None:
    if update.finish is None:
        return None
    if update.finish == "stop":
        return NativeFinish("stop", matched=update.matched_stop)
    if update.finish == "length":
        return NativeFinish("length", length=tokens)
    return NativeFinish("abort", message="aborted on request")
