"""From a request body to what the engine understands; whatever is wrong with it becomes an ApiError."""

import re
from collections.abc import Mapping
from typing import TypeVar

import msgspec
from starlette.requests import Request

from repro.base.rng import bits64
from repro.serve.server.errors import ApiError
from repro.serve.server.schema import NativeSampling, OpenAiRequest, RequestId, Stop
from repro.serve.types import GenerateRequest, SamplingParams

Body = TypeVar("Body")

STOP_STRINGS_MAX = 4  # OpenAI's limit; /generate takes as many as the schema says
NATIVE_OFF: dict[str, object] = {
    "n": 1, "top_k": -1, "min_p": 0.0, "min_new_tokens": 0, "repetition_penalty": 1.0, "frequency_penalty": 0.0,
    "presence_penalty": 0.0, "logit_bias": {}, "stop_token_ids": [], "stop_regex": None, "json_schema": None,
    "regex": None, "ebnf": None,
}  # fmt: skip
_AT = re.compile(r" - at `\$\.?(.*)`$")
_request_id = msgspec.json.Decoder(RequestId)


async def read_body(request: Request, bytes_max: int) -> bytes:
    """Return the request's body. Raises ApiError 413 as soon as it is known to be too long."""
    length = request.headers.get("content-length", "0")
    chunks: list[bytes] = []
    total = int(length) if length.isascii() and length.isdigit() and len(length) < 20 else 0
    received = 0
    if total <= bytes_max:
        async for chunk in request.stream():
            received += len(chunk)
            if received > bytes_max:
                break
            chunks.append(chunk)
        else:
            return b"".join(chunks)
    raise ApiError(f"the body is longer than {bytes_max} bytes", status=413, code="body_too_large")


def decode(decoder: "msgspec.json.Decoder[Body]", body: bytes) -> Body:
    """Return the body as its struct. Raises ApiError with the field's path as `param`."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        at = _AT.search(str(error))
        text = str(error)[: at.start()] if at else str(error)
        param = at.group(1) if at else None
        raise ApiError(f"{param}: {text}" if param else text, param=param, code="invalid_value") from error
    except (msgspec.DecodeError, UnicodeError) as error:
        raise ApiError(f"the body is not valid JSON: {error}", code="invalid_json") from error
    except RecursionError as error:
        raise ApiError("the body is nested too deeply", code="invalid_json") from error


def client_id(rid: str | None, headers: Mapping[str, str]) -> str | None:
    """Return the id that the client chose for its request (`rid`, else X-Request-Id), or None."""
    header = headers.get("x-request-id")
    if rid is not None or header is None:
        return rid
    try:
        return _request_id.decode(msgspec.json.encode(header))
    except msgspec.ValidationError as error:
        raise ApiError(
            "X-Request-Id: expected 1 to 128 printable ASCII characters without spaces", param="X-Request-Id"
        ) from error


def openai_request(
    body: OpenAiRequest, request_id: str, tokens: list[int], max_tokens: int, top_logprobs: int, seed: int
) -> GenerateRequest:
    """Return what the engine shall do for an OpenAI request. Raises ApiError for options that no engine here has."""
    refuse_unless_off(body, {"n": 1, "frequency_penalty": 0.0, "presence_penalty": 0.0, "logit_bias": {}})
    if body.stream_options is not None and not body.stream:
        raise ApiError("stream_options is only allowed with stream: true", param="stream_options")
    stop = stop_strings(body.stop)
    if len(stop) > STOP_STRINGS_MAX:
        raise ApiError(f"stop: at most {STOP_STRINGS_MAX} strings, found {len(stop)}", param="stop")
    sampling = SamplingParams(
        max_tokens=max_tokens,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        seed=request_seed(body.seed, request_id, seed),
        stop=stop,
        ignore_eos=body.ignore_eos,
        top_logprobs=top_logprobs,
    )
    cache_key = (body.cache_salt or "") + (body.extra_key or "")  # joined as SGLang does
    return GenerateRequest(request_id, tuple(tokens), sampling, cache_key=cache_key)


def native_sampling(
    body: NativeSampling, request_id: str, max_tokens: int, top_logprobs: int, seed: int
) -> SamplingParams:
    """Return the sampling of a /generate request. Raises ApiError for options that no engine here has."""
    refuse_unless_off(body, NATIVE_OFF, "sampling_params.")
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        seed=request_seed(body.sampling_seed, request_id, seed),
        stop=stop_strings(body.stop),
        ignore_eos=body.ignore_eos,
        top_logprobs=top_logprobs,
    )


def refuse_unless_off(body: msgspec.Struct, off: Mapping[str, object], prefix: str = "") -> None:
    """Raise ApiError for the first field that is neither null nor the value that means "off"."""
    for name, value in off.items():
        found = getattr(body, name)
        if found is not None and found != value:
            raise ApiError(
                f"{prefix}{name}: {found!r} is not supported here; leave it out or send "
                f"{msgspec.json.encode(value).decode()}",
                param=prefix + name,
                code="unsupported_value",
            )


def answer_tokens_max(asked: int | None, prompt_tokens: int, context_tokens: int, param: str) -> int:
    """Return how many tokens the answer may have; by default all that the context has left."""
    if prompt_tokens == 0:
        raise ApiError(f"{param} is empty; there is nothing to continue", param=param)
    wanted = 1 if asked is None else asked
    if prompt_tokens + wanted > context_tokens:
        raise ApiError(
            f"the model's maximum context length is {context_tokens} tokens, and the request asks for "
            f"{prompt_tokens + wanted}: {prompt_tokens} in {param} and {wanted} for the answer; shorten one of them",
            param=param,
            code="context_length_exceeded",
        )
    return context_tokens - prompt_tokens if asked is None else asked


def stop_strings(stop: Stop | None) -> tuple[str, ...]:
    """Return the stop strings as a tuple."""
    return (stop,) if isinstance(stop, str) else tuple(stop or ())


def request_seed(asked: int | None, request_id: str, seed: int) -> int:
    """Return a request's sampling seed, 63 bits: the client's, or one drawn from the server's seed by its id."""
    return (bits64(seed, "sampling", request_id) if asked is None else asked) & (2**63 - 1)
