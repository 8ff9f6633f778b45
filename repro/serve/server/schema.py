"""What clients may send, field by field. Unknown fields are ignored, as OpenAI-compatible servers do.

Fields that would change the answer in a way this server can't are declared with the value that
means "off", so that `intake` refuses anything else instead of ignoring it silently.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

TokenCount = Annotated[int, Meta(ge=1, le=2**31 - 1)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Temperature = Annotated[float, Meta(ge=0.0, le=2.0)]
TopP = Annotated[float, Meta(gt=0.0, le=1.0)]
Penalty = Annotated[float, Meta(ge=-2.0, le=2.0)]
TopLogprobs = Annotated[int, Meta(ge=0, le=20)]
StopString = Annotated[str, Meta(min_length=1, max_length=1024)]
Stop = StopString | Annotated[list[StopString], Meta(max_length=16)]
FunctionName = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_.:-]{1,128}\Z")]
RequestId = Annotated[str, Meta(pattern=r"^[\x21-\x7e]{1,128}\Z")]  # goes into headers and logs as it is


CacheKey = Annotated[str, Meta(max_length=1024)]
PROMPTS_MAX = 1024  # prompts of one /tokenize


class TextPart(Struct, frozen=True, tag_field="type", tag="text"):
    """A piece of text content, the only kind of part there is."""

    text: str


Content = str | list[TextPart]


class FunctionCall(Struct, frozen=True):
    """What an assistant called; `arguments` is JSON text, or an object as some agents send it."""

    name: str
    arguments: str | dict[str, Any] = "{}"


class ToolCall(Struct, frozen=True):
    """One call of a tool in the history."""

    function: FunctionCall
    id: str = ""
    type: Literal["function"] = "function"


class SystemMessage(Struct, frozen=True, tag_field="role", tag="system"):
    """Instructions of the session's operator."""

    content: Content


class DeveloperMessage(Struct, frozen=True, tag_field="role", tag="developer"):
    """The newer name of a system message."""

    content: Content


class UserMessage(Struct, frozen=True, tag_field="role", tag="user"):
    """What the user said."""

    content: Content


class AssistantMessage(Struct, frozen=True, tag_field="role", tag="assistant", omit_defaults=True):
    """An earlier answer: text, tool calls, or both."""

    content: Content | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None


class ToolMessage(Struct, frozen=True, tag_field="role", tag="tool", omit_defaults=True):
    """What a tool returned."""

    content: Content
    tool_call_id: str = ""


Message = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage


class FunctionSpec(Struct, frozen=True, omit_defaults=True):
    """A tool as the client declares it; `parameters` is a JSON schema."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Struct, frozen=True):
    """A declared tool."""

    type: Literal["function"]
    function: FunctionSpec


class NamedFunction(Struct, frozen=True):
    """The name in a tool choice that forces one function."""

    name: str


class NamedToolChoice(Struct, frozen=True):
    """A tool choice that forces one function."""

    function: NamedFunction
    type: Literal["function"] = "function"


class ResponseFormat(Struct, frozen=True):
    """The wanted shape of the answer."""

    type: str


class StreamOptions(Struct, frozen=True):
    """What a stream carries besides the answer."""

    include_usage: bool | None = None


class OpenAiRequest(Struct, frozen=True, kw_only=True):
    """What chat and text completions have in common."""

    model: str = "default"
    max_tokens: TokenCount | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    seed: Seed | None = None
    stop: Stop | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: dict[str, float] | None = None
    rid: RequestId | None = None
    ignore_eos: bool = False
    return_cached_tokens_details: bool = False
    cache_salt: CacheKey | None = None  # only requests of the same one share cached prefixes
    extra_key: CacheKey | None = None  # likewise; SGLang joins the two


class ChatRequest(OpenAiRequest, frozen=True, kw_only=True):
    """The body of /v1/chat/completions."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: TokenCount | None = None
    tools: Annotated[list[Tool], Meta(max_length=1024)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | None = None
    parallel_tool_calls: bool | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    response_format: ResponseFormat | None = None


class CompletionRequest(OpenAiRequest, frozen=True, kw_only=True):
    """The body of /v1/completions. A list of prompts may have one entry."""

    prompt: str | list[str | TokenId | list[TokenId]]
    logprobs: TopLogprobs | None = None
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None


class NativeSampling(Struct, frozen=True, kw_only=True):
    """`sampling_params` of /generate, with SGLang's names and defaults."""

    max_new_tokens: TokenCount | None = 128
    temperature: Temperature = 1.0
    top_p: TopP = 1.0
    top_k: int = -1
    min_p: float = 0.0
    sampling_seed: Seed | None = None
    stop: Stop | None = None
    stop_token_ids: list[TokenId] | None = None
    stop_regex: str | list[str] | None = None
    ignore_eos: bool = False
    min_new_tokens: int = 0
    n: int = 1
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[str, float] | None = None
    json_schema: str | None = None
    regex: str | None = None
    ebnf: str | None = None


class NativeRequest(Struct, frozen=True, kw_only=True):
    """The body of /generate: `text` or `input_ids`."""

    text: str | list[str] | None = None
    input_ids: list[TokenId | list[TokenId]] | None = None
    sampling_params: NativeSampling | None = None
    stream: bool = False
    return_logprob: bool = False
    logprob_start_len: int = -1
    top_logprobs_num: TopLogprobs = 0
    rid: RequestId | None = None
    extra_key: CacheKey | None = None  # only requests of the same one share cached prefixes


class TokenizeBody(Struct, frozen=True):
    """The body of /tokenize. There are no tokens that this tokenizer would add."""

    prompt: str | Annotated[list[str], Meta(max_length=PROMPTS_MAX)]
    model: str = "default"
    add_special_tokens: bool = True


class AbortBody(Struct, frozen=True):
    """The body of /abort_request: one request, or all of them."""

    rid: str = ""
    abort_all: bool = False


chat_decoder = msgspec.json.Decoder(ChatRequest)
completion_decoder = msgspec.json.Decoder(CompletionRequest)
native_decoder = msgspec.json.Decoder(NativeRequest)
tokenize_decoder = msgspec.json.Decoder(TokenizeBody)
abort_decoder = msgspec.json.Decoder(AbortBody)
