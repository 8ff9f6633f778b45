"""/v1/chat/completions: messages and tools in, text and tool calls out."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import UNSET, Struct

from repro.serve.server.answers import Job, OpenAiAnswer, chosen_tokens, finite, stream_info
from repro.serve.server.errors import ApiError
from repro.serve.server.intake import answer_tokens_max, decode, openai_request
from repro.serve.server.replies import (
    Call,
    ChatChoice,
    ChatLogprobs,
    ChatMessage,
    ChosenLogprob,
    ChunkChoice,
    Delta,
    Finish,
    TokenLogprob,
)
from repro.serve.server.schema import ChatRequest, Content, Message, chat_decoder
from repro.serve.server.service import Service
from repro.serve.server.toolcalls import CallWriter, ParsedCall, ToolCallReader
from repro.serve.types import Update


def read_chat(service: Service, raw: bytes, headers: Mapping[str, str]) -> Job:
    """Return the job of a chat request. Raises ApiError for whatever is wrong with it."""
    body = decode(chat_decoder, raw)
    service.check_model(body.model)
    _refuse_unsupported(body)
    request_id = service.request_id(body.rid, headers, "chatcmpl")
    tokens = _prompt(service, body)
    wanted = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    max_tokens = answer_tokens_max(wanted, len(tokens), service.engine.served.context_tokens, "messages")
    request = openai_request(body, request_id, tokens, max_tokens, body.top_logprobs or 0, service.seed)
    return Job(request, ChatAnswer(service, body, request_id), bool(body.stream))


class ChatAnswer(OpenAiAnswer[ChatRequest]):
    """Writes one chat answer, as a stream or whole."""

    reply_object, chunk_object = "chat.completion", "chat.completion.chunk"

    def __init__(self, service: Service, body: ChatRequest, request_id: str) -> None:
        super().__init__(service, body, request_id)
        self._tools = body.tools if body.tools and body.tool_choice != "none" else None
        self._reader = ToolCallReader()
        self._writer = CallWriter(self._tools or ())
        self._num_calls = 0
        self._started = False

    def chunks(self, update: Update, elapsed_s: float) -> Iterator[Struct]:
        """Yield role, content, tool calls, the finish, and the counts, each when it is known."""
        if not self._started:
            self._started = True
            yield self._chunk([ChunkChoice(Delta(role="assistant", content=""))])
        logprobs, info = self._logprobs([update]), stream_info(update)
        for piece in self._pieces(update):
            delta = Delta(content=piece) if isinstance(piece, str) else Delta(tool_calls=[self._call(piece, True)])
            yield self._chunk([ChunkChoice(delta, logprobs)], meta_info=info)
            logprobs = None  # once, with the first piece of the update
        if logprobs is not None and logprobs.content:
            yield self._chunk([ChunkChoice(Delta(content=""), logprobs)], meta_info=info)
        if update.finish is not None:
            yield from self._ending(ChunkChoice(Delta(), None, self._finish(update), update.matched_stop), update)

    def whole(self, updates: Sequence[Update], elapsed_s: float) -> Struct:
        """Return the reply."""
        last = updates[-1]
        pieces = [piece for update in updates for piece in self._pieces(update)]
        text = "".join(piece for piece in pieces if isinstance(piece, str))
        calls = [self._call(piece, False) for piece in pieces if isinstance(piece, ParsedCall)]
        message = ChatMessage(text if text or not calls else None, calls or UNSET)
        return self._whole(ChatChoice(message, self._finish(last), self._logprobs(updates), last.matched_stop), last)

    def _pieces(self, update: Update) -> list[str | ParsedCall]:
        if self._tools is None:
            return [update.text] if update.text else []
        pieces = self._reader.feed(update.text)
        return pieces if update.finish is None else pieces + self._reader.end()

    def _call(self, call: ParsedCall, streamed: bool) -> Call:
        index, self._num_calls = self._num_calls, self._num_calls + 1
        function = self._writer.write(call)
        return Call(f"call_{self._id}_{index}", "function", function, index if streamed else UNSET)

    def _finish(self, last: Update) -> Finish:
        finish = last.finish or "abort"
        return "tool_calls" if finish == "stop" and self._num_calls else finish

    def _logprobs(self, updates: Sequence[Update]) -> ChatLogprobs | None:
        if not self._body.logprobs:
            return None
        return ChatLogprobs(
            [
                ChosenLogprob(*self._token(token, logprob), [TokenLogprob(*self._token(*top)) for top in tops])
                for update in updates
                for token, logprob, tops in chosen_tokens(update)
            ]
        )

    def _token(self, token: int, logprob: float) -> tuple[str, float, list[int]]:
        """Return the fields of a TokenLogprob."""
        return self._vocabulary.token_text(token), finite(logprob), list(self._vocabulary.token_bytes(token))


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
    service.vocabulary.check_fits(length, service.engine.served.context_tokens, "messages")
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

    msgspec reads them: it refuses lone surrogates, NaN and huge numbers, which Python's json accepts and no
    prompt can hold.
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
