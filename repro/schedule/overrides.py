"""A scenario with less load, as numbers that a token can hold."""

import msgspec


class Overrides(msgspec.Struct, frozen=True):
    """What to change of a scenario; None leaves what its file says."""

    stamps: bool = False  # numerics = "stamps" instead of what the file says
    sessions: tuple[int, ...] | None = None  # their numbers, ascending
    turns: int | None = None
    prompt_tokens: int | None = None
    answer_tokens: int | None = None
    device_pages: int | None = None
    context_tokens: int | None = None
    requests: int | None = None  # the load ends before one more is sent
    faults: tuple[int, ...] | None = None  # numbers of its [[fault]] tables, ascending, from 0
    gap_ms: int | None = None  # before each turn of a synthesised session but the first
    fires_after: int | None = msgspec.field(default=None, name="fires")  # each fault fires once, after so many hits
    host_pages: int | None = None
    turns_in_all: int | None = msgspec.field(default=None, name="dealt")  # handed out to the sessions in rounds
    abort_ms: int | None = None  # after sending, where a fault makes a client abort or disconnect
    decode_pages: int | None = None  # device pages of a decode worker
