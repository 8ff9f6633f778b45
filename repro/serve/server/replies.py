"""What the server answers, field by field: OpenAI's chat and text completions, SGLang's /generate."""

from collections.abc import Sequence
from typing import Literal

from msgspec import UNSET, Struct, UnsetType

Finish = Literal["stop", "length", "tool_calls", "abort"]


class PromptDetails(Struct, frozen=True):
    """How much of the prompt came from the prefix cache."""

    cached_tokens: int


class Usage(Struct, frozen=True):
    """Token counts of one request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class CachedDetails(Struct, frozen=True):
    """Cached prompt tokens by the tier that they were found on."""

    device: int
    host: int


class Extension(Struct, frozen=True):
    """SGLang's extension object of an OpenAI reply."""

    cached_tokens_details: CachedDetails


class StreamInfo(Struct, frozen=True):
    """Running counts of an answer's speculation, so that a client can judge it while it grows."""

    completion_tokens: int
    spec_verify_ct: int
    spec_accept_token_num: int
    spec_draft_token_num: int


class TokenLogprob(Struct, frozen=True):
    """One token with its log-probability; `bytes` are exact where `token` is a cut character."""

    token: str
    logprob: float
    bytes: list[int]


class ChosenLogprob(TokenLogprob, frozen=True):
    """The token chosen, and the likeliest tokens at its place."""

    top_logprobs: list[TokenLogprob]


class ChatLogprobs(Struct, frozen=True):
    """Log-probabilities of a chat answer or chunk."""

    content: list[ChosenLogprob]
    refusal: None = None


class CalledFunction(Struct, frozen=True):
    """A function's name and its arguments as JSON text."""

    name: str
    arguments: str


class Call(Struct, frozen=True, omit_defaults=True):
    """A tool call; streamed ones carry their index."""

    id: str
    type: str
    function: CalledFunction
    index: int | UnsetType = UNSET


class ChatMessage(Struct, frozen=True):
    """The assistant's message."""

    content: str | None
    tool_calls: list[Call] | UnsetType = UNSET
    role: str = "assistant"
    refusal: None = None


class ChatChoice(Struct, frozen=True):
    """The one choice of an answer."""

    message: ChatMessage
    finish_reason: Finish
    logprobs: ChatLogprobs | None
    matched_stop: str | int | None
    index: int = 0


class Delta(Struct, frozen=True):
    """What a chunk adds to the message."""

    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    tool_calls: list[Call] | UnsetType = UNSET


class ChunkChoice(Struct, frozen=True):
    """What a chunk adds to the one choice of an answer."""

    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: Finish | None = None
    matched_stop: str | int | None | UnsetType = UNSET
    index: int = 0


class TextLogprobs(Struct):
    """Log-probabilities of a text completion; the four lists run in step."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextChoice(Struct, frozen=True):
    """The one choice of a text completion, or what a chunk adds to it."""

    text: str
    logprobs: TextLogprobs | None
    finish_reason: Finish | None
    matched_stop: str | int | None | UnsetType = UNSET
    index: int = 0


class OpenAiReply(Struct, frozen=True):
    """A chat or text completion, or one event of its stream. `usage` is null until the event that carries it."""

    id: str
    created: int
    model: str
    choices: Sequence[Struct]  # ChatChoice, ChunkChoice or TextChoice; none in an event that only counts
    usage: Usage | None | UnsetType
    sglext: Extension | UnsetType
    meta_info: StreamInfo | UnsetType
    object: str


class NativeFinish(Struct, frozen=True):
    """Why /generate ended: with what was matched, at which length, or why it was aborted."""

    type: str
    matched: str | int | None | UnsetType = UNSET
    length: int | UnsetType = UNSET
    message: str | UnsetType = UNSET


NativeLogprob = tuple[float, int, str | None]  # (log-probability, token id, text)
InputLogprob = tuple[float | None, int, str | None]  # None for the first: nothing before it predicts it


class MetaInfo(Struct, frozen=True):
    """SGLang's facts of a request beside its text; accept length and rate are set once a draft was verified."""

    id: str
    finish_reason: NativeFinish | None
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    cached_tokens_details: CachedDetails
    e2e_latency: float
    output_token_logprobs: list[NativeLogprob] | UnsetType = UNSET
    output_top_logprobs: list[list[NativeLogprob]] | UnsetType = UNSET
    input_token_logprobs: list[InputLogprob] | UnsetType = UNSET  # begins at logprob_start_len
    input_top_logprobs: list[list[NativeLogprob] | None] | UnsetType = UNSET
    spec_verify_ct: int | UnsetType = UNSET
    spec_accept_token_num: int | UnsetType = UNSET
    spec_draft_token_num: int | UnsetType = UNSET
    spec_accept_histogram: tuple[int, ...] | UnsetType = UNSET  # verify steps by accepted drafts
    spec_accept_windows: tuple[float, ...] | UnsetType = UNSET  # accept length of each 64 tokens
    spec_accept_length: float | UnsetType = UNSET
    spec_accept_rate: float | UnsetType = UNSET


class NativeReply(Struct, frozen=True):
    """The answer of /generate, or one event of it; text and ids are the whole answer so far."""

    text: str
    output_ids: list[int]
    meta_info: MetaInfo


class Tokenized(Struct, frozen=True):
    """The answer of /tokenize; a list of prompts gets lists."""

    tokens: list[int] | list[list[int]]
    count: int | list[int]
    max_model_len: int


class ModelCard(Struct, frozen=True):
    """One entry of /v1/models."""

    id: str
    created: int
    max_model_len: int
    object: str = "model"
    owned_by: str = "repro"


class ModelList(Struct, frozen=True):
    """The answer of /v1/models."""

    data: list[ModelCard]
    object: str = "list"
