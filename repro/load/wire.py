"""What servers stream, as pieces of an answer: chat and text completions, and SGLang's /generate.

Only fields that are used are declared; servers add others freely, and leave out what they don't know.
"""

from typing import Any, Literal

import msgspec

from repro.load.secret import excerpt_of, without_key
from repro.load.sse import MalformedStreamError
from repro.record.requests import SpecCounts

Api = Literal["chat", "completions", "generate"]
PATHS: dict[Api, str] = {"chat": "/v1/chat/completions", "completions": "/v1/completions", "generate": "/generate"}
DECODE_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


# gc=False: five of these are made for every chunk, and none can be part of a cycle.


class CallPiece(msgspec.Struct, frozen=True, gc=False):
    """A piece of a tool call: a call begins where `name` is given, then its arguments grow."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


class Counts(msgspec.Struct, frozen=True, gc=False):
    """Token counts as the server says them; None where it doesn't."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    cached_device_tokens: int | None = None
    cached_host_tokens: int | None = None


class Piece(msgspec.Struct, frozen=True, gc=False):
    """What one event adds to an answer. Detectors see `reasoning`, the history leaves it out."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[CallPiece, ...] = ()
    finish: str = ""
    counts: Counts | None = None
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    words: tuple[str, ...] = ()  # the tokens of these log-probabilities
    spec: SpecCounts | None = None  # counts of the answer so far; None where the server does not count drafts


class ServerSaidError(Exception):
    """The server reported an error inside its stream."""


class _Function(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct, gc=False):
    index: int = 0
    id: str | None = None
    function: _Function = msgspec.field(default_factory=_Function)


class Delta(msgspec.Struct, gc=False):
    """What a message has, or grows by."""

    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_Call] | None = None


class _Logprob(msgspec.Struct, gc=False):
    token: str = ""
    logprob: float = 0.0


class _Logprobs(msgspec.Struct, gc=False):
    content: list[_Logprob] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None


class _Choice(msgspec.Struct, gc=False):
    delta: Delta | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None
    token_ids: list[int] | None = None  # vLLM's return_token_ids


class _PromptDetails(msgspec.Struct, gc=False):
    cached_tokens: int | None = None


class Usage(msgspec.Struct, gc=False):
    """Counts of tokens under OpenAI's names."""

    prompt_tokens: int = 0
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None


class _CachedDetails(msgspec.Struct, gc=False):
    device: int = 0
    host: int = 0


class _Extension(msgspec.Struct, gc=False):
    cached_tokens_details: _CachedDetails | None = None


class _SpecMeta(msgspec.Struct, gc=False):
    completion_tokens: int = 0
    spec_verify_ct: int | None = None
    spec_accept_token_num: int | None = None
    spec_draft_token_num: int | None = None


class _OpenAiEvent(msgspec.Struct, gc=False):
    choices: list[_Choice] = []
    usage: Usage | None = None
    sglext: _Extension | None = None
    meta_info: _SpecMeta | None = None
    error: Any = None


class _Meta(_SpecMeta, gc=False):
    finish_reason: dict[str, Any] | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    cached_tokens_details: _CachedDetails | None = None
    output_token_logprobs: list[tuple[float, int, str | None]] | None = None


class _GenerateEvent(msgspec.Struct, gc=False):
    text: str = ""
    output_ids: list[int] = []
    meta_info: _Meta | None = None
    error: Any = None


_NO_DELTA = Delta()
_openai = msgspec.json.Decoder(_OpenAiEvent)
_generate = msgspec.json.Decoder(_GenerateEvent)


class OpenAiReader:
    """Reads the events of /v1/chat/completions and /v1/completions."""

    def __init__(self) -> None:
        self._cached: _CachedDetails | None = None

    def read(self, data: bytes) -> Piece:
        """Return what one event adds. Raises MalformedStreamError or ServerSaidError."""
        try:
            event = _openai.decode(data)
        except DECODE_ERRORS as error:
            raise _malformed(data, error) from error
        if event.error is not None:
            raise ServerSaidError(message_of(event.error))
        if event.sglext is not None and event.sglext.cached_tokens_details is not None:
            self._cached = event.sglext.cached_tokens_details  # comes in an event before the usage
        counts = None if event.usage is None else self._counts(event.usage)
        spec = None if event.meta_info is None else _spec_counts(event.meta_info)
        if not event.choices:
            return Piece(counts=counts, spec=spec)
        choice = event.choices[0]
        delta = choice.delta or _NO_DELTA
        plain = choice.finish_reason is None and choice.logprobs is None and not choice.token_ids
        if counts is None and plain and not delta.tool_calls:
            return Piece(delta.content or choice.text or "", delta.reasoning_content or "", spec=spec)  # nearly all
        return Piece(
            text=(choice.text or "") + (delta.content or ""),
            reasoning=delta.reasoning_content or "",
            calls=tuple(_call_piece(call) for call in delta.tool_calls or ()),
            finish=choice.finish_reason or "",
            counts=counts,
            tokens=tuple(choice.token_ids or ()),
            logprobs=() if choice.logprobs is None else _logprobs(choice.logprobs),
            words=() if choice.logprobs is None else _words(choice.logprobs),
            spec=spec,
        )

    def _counts(self, usage: Usage) -> Counts:
        details = usage.prompt_tokens_details
        cached = (details.cached_tokens or 0) if details is not None else 0
        return _counts(usage.prompt_tokens, usage.completion_tokens or 0, cached, self._cached)


class GenerateReader:
    """Reads the events of /generate: their text and ids are the whole answer so far, or (newer) the increment."""

    def __init__(self) -> None:
        self._text = ""
        self._tokens = 0

    def read(self, data: bytes) -> Piece:
        """Return what one event adds. Raises MalformedStreamError or ServerSaidError."""
        try:
            event = _generate.decode(data)
        except DECODE_ERRORS as error:
            raise _malformed(data, error) from error
        if event.error is not None:
            raise ServerSaidError(message_of(event.error))
        meta = event.meta_info or _Meta()
        whole = len(event.output_ids) == meta.completion_tokens and event.text.startswith(self._text)
        skip_text, skip_tokens = (len(self._text), self._tokens) if whole else (0, 0)
        text = event.text[skip_text:]
        tokens = tuple(event.output_ids[skip_tokens:])
        self._text += text
        self._tokens += len(tokens)
        scored = (meta.output_token_logprobs or [])[skip_tokens:]
        finish = meta.finish_reason or {}
        return Piece(
            text=text,
            finish=str(finish.get("type", "")),
            counts=_counts(meta.prompt_tokens, meta.completion_tokens, meta.cached_tokens, meta.cached_tokens_details),
            tokens=tokens,
            logprobs=tuple(logprob for logprob, _, _ in scored),
            spec=_spec_counts(meta),
        )


Reader = OpenAiReader | GenerateReader


def reader_of(api: Api) -> Reader:
    """Return a reader for one answer of this API."""
    return GenerateReader() if api == "generate" else OpenAiReader()


def message_of(error: Any) -> str:
    """Return the server's own words from an error object of any shape, the API key cut out."""
    if isinstance(error, dict):
        inner = error.get("error", error)
        message = inner.get("message", inner.get("detail")) if isinstance(inner, dict) else inner
        return without_key(str(message if message is not None else error))
    return without_key(str(error))


def _malformed(data: bytes, error: Exception) -> MalformedStreamError:
    return MalformedStreamError(f"an event is not what the API says ({error}): {excerpt_of(data)}")


def _call_piece(call: _Call) -> CallPiece:
    return CallPiece(call.index, call.id or "", call.function.name or "", call.function.arguments or "")


def _logprobs(logprobs: _Logprobs) -> tuple[float, ...]:
    if logprobs.content is not None:
        return tuple(entry.logprob for entry in logprobs.content)
    return tuple(value for value in logprobs.token_logprobs or () if value is not None)


def _words(logprobs: _Logprobs) -> tuple[str, ...]:
    if logprobs.content is not None:
        return tuple(entry.token for entry in logprobs.content)
    return tuple(logprobs.tokens or ())


def _spec_counts(meta: _SpecMeta) -> SpecCounts | None:
    verifies, accepted, drafted = meta.spec_verify_ct, meta.spec_accept_token_num, meta.spec_draft_token_num
    if verifies is None or accepted is None or drafted is None:
        return None
    return SpecCounts(meta.completion_tokens, verifies, accepted, drafted)


def _counts(prompt: int, completion: int, cached: int, tiers: _CachedDetails | None) -> Counts:
    return Counts(prompt, completion, cached, *((tiers.device, tiers.host) if tiers is not None else ()))
