"""/v1/chat/completions: messages and tools in, text and tool calls out."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from repro.serve.server.answers import (
    Job,
    extension,
    stream_info,
    token_logprob,
    tops_of,
    usage,
    wants_usage,
)
from repro.serve.server.chat import ParsedCall
from repro.serve.server.errors import ApiError
from repro.serve.server.intake import answer_tokens_max, cache_key, decode, openai_sampling
from repro.serve.server.replies import (
    Call,
    ChatChoice,
    ChatChunk,
    ChatLogprobs,
    ChatMessage,
    ChatReply,
    ChosenLogprob,
    ChunkChoice,
    Delta,
    Finish,
    StreamInfo,
)
from repro.serve.server.schema import ChatRequest, Content, Message, chat_decoder
from repro.serve.server.service import Service
from repro.serve.server.toolcalls import CallWriter, ToolCallReader
from repro.serve.types import GenerateRequest, Update


def read_chat(service: Service, raw: bytes, headers: Mapping[str, str]) -> Job:
    """Return the job of a chat request. Raises ApiError for whatever is wrong with it."""
    body = decode(chat_decoder, raw)
    service.check_model(body.model)
    _refuse_unsupported(body)
    request_id = service.request_id(body.rid, headers, "chatcmpl")
    tokens = _prompt(service, body)
    name = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    max_tokens = answer_tokens_max(getattr(body, name), len(tokens), service.engine.context_length, "messages")
    sampling = openai_sampling(body, request_id, max_tokens, body.top_logprobs or 0, service.seed)
    request = GenerateRequest(request_id, tuple(tokens), sampling, cache_key=cache_key(body))
    return Job(request, ChatAnswer(service, body, request_id), bool(body.stream))


class ChatAnswer:
    """Writes one chat answer, as a stream or whole."""

    def __init__(self, service: Service, body: ChatRequest, request_id: str) -> None:
        self._vocabulary = service.vocabulary
        self._model = service.engine.model_name
        self._body = body
        self._id = request_id
        self._created = int(service.clock())
        self._tools = body.tools if body.tools and body.tool_choice != "none" else None
        self._reader = ToolCallReader()
        self._writer = CallWriter(self._tools or ())
        self._calls = 0
        self._started = False

    def chunks(self, update: Update, elapsed_s: float) -> Iterator[Struct]:
        """Yield role, content, tool calls, the finish, and the counts, each when it is known."""
        if not self._started:
            self._started = True
            yield self._chunk(Delta(role="assistant", content=""))
        logprobs = self._logprobs([update])
        for piece in self._pieces(update):
            delta = Delta(content=piece) if isinstance(piece, str) else Delta(tool_calls=[self._call(piece, True)])
            yield self._chunk(delta, logprobs, stream_info(update))
            logprobs = None  # once, with the first piece of the update
        if logprobs is not None and logprobs.content:
            yield self._chunk(Delta(content=""), logprobs, stream_info(update))
        if update.finish is not None:
            yield from self._ending(update)

    def whole(self, updates: Sequence[Update], elapsed_s: float) -> Struct:
        """Return the reply."""
        last = updates[-1]
        pieces = [piece for update in updates for piece in self._pieces(update)]
        text = "".join(piece for piece in pieces if isinstance(piece, str))
        calls = [self._call(piece, False) for piece in pieces if isinstance(piece, ParsedCall)]
        message = ChatMessage(text if text or not calls else None, calls or UNSET)
        choice = ChatChoice(message, self._finish(last), self._logprobs(updates), last.matched_stop)
        return ChatReply(self._id, self._created, self._model, [choice], usage(last), extension(self._body, last))

    def _pieces(self, update: Update) -> list[str | ParsedCall]:
        if self._tools is None:
            return [update.text] if update.text else []
        pieces = self._reader.feed(update.text)
        return pieces if update.finish is None else pieces + self._reader.end()

    def _call(self, call: ParsedCall, streamed: bool) -> Call:
        index, self._calls = self._calls, self._calls + 1
        function = self._writer.write(call)
        return Call(f"call_{self._id}_{index}", "function", function, index if streamed else UNSET)

    def _ending(self, last: Update) -> Iterator[Struct]:
        choice = ChunkChoice(Delta(), None, self._finish(last), last.matched_stop)
        yield self._chunk_of([choice], stream_info(last))
        sglext = extension(self._body, last)
        if sglext is not UNSET:
            yield msgspec.structs.replace(self._chunk_of([]), sglext=sglext)
        if wants_usage(self._body):
            yield msgspec.structs.replace(self._chunk_of([]), usage=usage(last))

    def _finish(self, last: Update) -> Finish:
        finish = last.finish or "abort"
        return "tool_calls" if finish == "stop" and self._calls else finish

    def _chunk(
        self, delta: Delta, logprobs: ChatLogprobs | None = None, info: StreamInfo | UnsetType = UNSET
    ) -> ChatChunk:
        return self._chunk_of([ChunkChoice(delta, logprobs)], info)

    def _chunk_of(self, choices: list[ChunkChoice], info: StreamInfo | UnsetType = UNSET) -> ChatChunk:
        counts = None if wants_usage(self._body) else UNSET
        return ChatChunk(self._id, self._created, self._model, choices, counts, meta_info=info)

    def _logprobs(self, updates: Sequence[Update]) -> ChatLogprobs | None:
        if not self._body.logprobs:
            return None
        return ChatLogprobs([entry for update in updates for entry in self._entries(update)])

    def _entries(self, update: Update) -> Iterator[ChosenLogprob]:
        for token, logprob, tops in zip(update.tokens, update.logprobs, tops_of(update), strict=True):
            chosen = token_logprob(self._vocabulary, token, logprob)
            top = [token_logprob(self._vocabulary, other, score) for other, score in tops]
            yield ChosenLogprob(chosen.token, chosen.logprob, chosen.bytes, top)


def _refuse_unsupported(body: ChatRequest) -> None:
    if body.tool_choice not in (None, "none", "auto"):
        text = 'tool_choice: the model can\'t be forced to call; send "auto" or "none"'
        raise ApiError(text, param="tool_choice", code="unsupported_value")
    if body.response_format is not None and body.response_format.type != "text":
        text = f'response_format: {body.response_format.type!r} is not supported here; send "text"'
        raise ApiError(text, param="response_format", code="unsupported_value")
    if body.top_logprobs and not body.logprobs:
        raise ApiError("top_logprobs is only allowed with logprobs: true", param="top_logprobs")


def _prompt(service: Service, body: ChatRequest) -> list[int]:
    length = sum(_text_length(message.content) for message in body.messages)
    service.vocabulary.check_fits(length, service.engine.context_length, "messages")
    tools = msgspec.to_builtins(body.tools) if body.tools and body.tool_choice != "none" else ()
    try:
        messages = [_template_message(message) for message in body.messages]
        return service.vocabulary.chat.encode_chat(messages, tools)
    except ValueError as error:  # ChatError, arguments that are no JSON
        raise ApiError(str(error), param="messages") from error
    except RecursionError as error:
        raise ApiError("messages or tools are nested too deeply", param="messages") from error


def _template_message(message: Message) -> dict[str, Any]:
    """Return a message as the template takes it, arguments of tool calls as objects.

    msgspec reads them: it refuses the lone surrogates, NaN and huge numbers that Python's json lets
    through and no prompt can hold.
    """
    plain: dict[str, Any] = msgspec.to_builtins(message)
    for call in plain.get("tool_calls", ()):
        arguments = call["function"]["arguments"]
        if isinstance(arguments, str):
            call["function"]["arguments"] = msgspec.json.decode(arguments or "{}", type=dict[str, Any])
    return plain


def _text_length(content: Content | None) -> int:
    if content is None or isinstance(content, str):
        return len(content or "")
    return sum(len(part.text) for part in content)
