"""The messages between workers. Each may come late, twice, or never."""

import msgspec

from repro.serve.kv.pool import Pages
from repro.serve.types import GenerateRequest


class Submit(msgspec.Struct, frozen=True, tag="submit"):
    """Router to prefill: compute this prompt; `decode` will say where its rows go."""

    room: int
    request: GenerateRequest
    decode: str


class Destination(msgspec.Struct, frozen=True, tag="destination"):
    """Decode to prefill: write the prompt's rows into these pages and the first token into this slot."""

    room: int
    pages: Pages
    slot: int
    granted: int  # the decode worker's clock when the pages became this request's


class Done(msgspec.Struct, frozen=True, tag="done"):
    """Prefill to decode: no write of mine is on its way any more; `ok`: all of them arrived."""

    room: int
    ok: bool
    cached_device_tokens: int = 0
    cached_host_tokens: int = 0


class Abort(msgspec.Struct, frozen=True, tag="abort"):
    """Decode to prefill: the request was aborted; answer when its pages are safe."""

    room: int
    decode: str  # the worker that waits for the answer


class Safe(msgspec.Struct, frozen=True, tag="safe"):
    """Prefill to decode: no write into the room's pages is on its way or will ever be issued."""

    room: int


Message = Submit | Destination | Done | Abort | Safe


def kind(message: Message) -> str:
    """Return a message's name in probe points and events."""
    return str(message.__struct_config__.tag)
