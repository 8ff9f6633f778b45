"""Whole replies of a server with log-probabilities in them, in the three forms that servers have.

OpenAI's chat and text completions with vLLM's extensions (`token_ids`, `prompt_token_ids`, `prompt_logprobs`), and
SGLang's /generate. Only fields that are used are declared. Log-probabilities are natural: nats.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import msgspec

from repro.load.secret import excerpt_of
from repro.load.sse import MalformedStreamError
from repro.load.wire import DECODE_ERRORS, Api, Delta, Usage

Key = int | str  # names a token: its id on /generate, its text on OpenAI's API
IMPOSSIBLE = -9999.0  # JSON has no infinity: null and what servers write for it


class Place(msgspec.Struct, frozen=True):
    """One token of an answer, and how likely the likeliest were at its place."""

    key: Key
    logprob: float
    tops: Mapping[Key, float] = {}


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """A whole answer. What the server did not say is empty or None."""

    text: str
    places: tuple[Place, ...] = ()
    ids: tuple[int, ...] = ()
    prompt_ids: tuple[int, ...] = ()
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int | None = None


class Scores(msgspec.Struct, frozen=True):
    """How likely an answer's tokens are, as the prompt of another request."""

    surprisals: tuple[float, ...]
    deficits: tuple[float, ...]  # nats behind the likeliest token of each place


class _Alternative(msgspec.Struct):
    token: str
    logprob: float | None = None


class _Chosen(_Alternative):
    top_logprobs: list[_Alternative] | None = None


class _Logprobs(msgspec.Struct):
    content: list[_Chosen] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float | None] | None] | None = None


class _Scored(msgspec.Struct):
    logprob: float | None = None


class _Choice(msgspec.Struct):
    message: Delta | None = None
    text: str | None = None
    logprobs: _Logprobs | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: list[dict[str, _Scored] | None] | None = None


class _OpenAiReply(msgspec.Struct):
    choices: list[_Choice]
    usage: Usage = msgspec.field(default_factory=Usage)
    prompt_token_ids: list[int] | None = None


_Entry = tuple[float | None, int, str | None]


class _Meta(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int | None = None
    output_token_logprobs: list[_Entry] | None = None
    output_top_logprobs: list[list[_Entry] | None] | None = None
    input_token_logprobs: list[_Entry] | None = None
    input_top_logprobs: list[list[_Entry] | None] | None = None


class _GenerateReply(msgspec.Struct):
    text: str
    meta_info: _Meta
    output_ids: list[int] = []


_openai = msgspec.json.Decoder(_OpenAiReply)
_generate = msgspec.json.Decoder(_GenerateReply)


def read_reply(api: Api, body: bytes) -> Reply:
    """Return a whole answer. Raises MalformedStreamError for what is no reply of this API."""
    with _malformed(body):
        return _read_generate(body) if api == "generate" else _read_openai(body)


def read_scores(api: Api, body: bytes, answer: Sequence[int]) -> Scores | None:
    """Return how likely the last tokens of a prompt are, which are `answer`; None when the reply does not say it.

    Raises MalformedStreamError for what is no reply of this API.
    """
    with _malformed(body):
        return _generate_scores(body, answer) if api == "generate" else _openai_scores(body, answer)


def read_prompt_ids(body: bytes) -> tuple[int, ...]:
    """Return the ids of a prompt, from a reply of /generate with log-probabilities from the prompt's first token on."""
    with _malformed(body):
        return tuple(token for _, token, _ in _generate.decode(body).meta_info.input_token_logprobs or ())


@contextmanager
def _malformed(body: bytes) -> Iterator[None]:
    try:
        yield
    except (*DECODE_ERRORS, IndexError) as error:
        raise MalformedStreamError(f"a reply is not what the API says ({error}): {excerpt_of(body)}") from error


def _read_generate(body: bytes) -> Reply:
    reply = _generate.decode(body)
    meta = reply.meta_info
    chosen = meta.output_token_logprobs or []
    tops = meta.output_top_logprobs or [None] * len(chosen)
    places = tuple(
        Place(token, _finite(logprob), {other: _finite(value) for value, other, _ in top or ()})
        for (logprob, token, _), top in zip(chosen, tops, strict=False)
    )
    return Reply(
        text=reply.text,
        places=places,
        ids=tuple(reply.output_ids or [token for _, token, _ in chosen]),
        prompt_tokens=meta.prompt_tokens,
        completion_tokens=meta.completion_tokens,
        cached_tokens=meta.cached_tokens,
    )


def _read_openai(body: bytes) -> Reply:
    reply = _openai.decode(body)
    choice = reply.choices[0]
    details = reply.usage.prompt_tokens_details
    return Reply(
        text=_text_of(choice),
        places=() if choice.logprobs is None else _places(choice.logprobs),
        ids=tuple(choice.token_ids or ()),
        prompt_ids=tuple(reply.prompt_token_ids or choice.prompt_token_ids or ()),
        prompt_tokens=reply.usage.prompt_tokens,
        completion_tokens=reply.usage.completion_tokens or 0,
        cached_tokens=None if details is None else details.cached_tokens,
    )


def _text_of(choice: _Choice) -> str:
    """Return an answer as one text, calls as the load's client renders them."""
    if choice.message is None:
        return choice.text or ""
    message = choice.message
    calls = [f"\n[call {call.function.name}] {call.function.arguments or ''}" for call in message.tool_calls or ()]
    return (message.reasoning_content or "") + (message.content or "") + "".join(calls)


def _places(logprobs: _Logprobs) -> tuple[Place, ...]:
    if logprobs.content is not None:
        return tuple(
            Place(each.token, _finite(each.logprob), {o.token: _finite(o.logprob) for o in each.top_logprobs or ()})
            for each in logprobs.content
        )
    words, values = logprobs.tokens or [], logprobs.token_logprobs or []
    tops = logprobs.top_logprobs or [None] * len(words)
    return tuple(
        Place(word, _finite(value), {other: _finite(each) for other, each in (top or {}).items()})
        for word, value, top in zip(words, values, tops, strict=False)
    )


def _generate_scores(body: bytes, answer: Sequence[int]) -> Scores | None:
    meta = _generate.decode(body).meta_info
    entries, tops = meta.input_token_logprobs or [], meta.input_top_logprobs or []
    if not answer or len(entries) < len(answer) or len(tops) != len(entries):
        return None
    judged = entries[-len(answer) :]
    if any(found not in (token, 0) for (_, found, _), token in zip(judged, answer, strict=True)):  # SGLang clips to 0
        return None
    logprobs = [_finite(logprob) for logprob, _, _ in judged]
    best = [max((_finite(value) for value, _, _ in top or ()), default=IMPOSSIBLE) for top in tops[-len(answer) :]]
    return _scores(logprobs, best)


def _openai_scores(body: bytes, answer: Sequence[int]) -> Scores | None:
    judged = _openai.decode(body).choices[0].prompt_logprobs or []
    if not answer or len(judged) < len(answer):
        return None
    logprobs, best = [], []
    for token, entry in zip(answer, judged[-len(answer) :], strict=True):
        if entry is None or str(token) not in entry:
            return None
        logprobs.append(_finite(entry[str(token)].logprob))
        best.append(max(_finite(each.logprob) for each in entry.values()))
    return _scores(logprobs, best)


def _scores(logprobs: Sequence[float], best: Sequence[float]) -> Scores:
    pairs = zip(logprobs, best, strict=True)
    return Scores(tuple(-each for each in logprobs), tuple(max(0.0, top - each) for each, top in pairs))


def _finite(logprob: float | None) -> float:
    return IMPOSSIBLE if logprob is None or not logprob > IMPOSSIBLE else logprob
