"""What is kept of a scenario: a lighter load, as a search and a shrunk finding run it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Kept:
    """Overrides of a scenario that a token can hold; None leaves what its file says."""

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
    fires: int | None = None  # each fault fires once, after so many hits of its actor
    host_pages: int | None = None
    dealt: int | None = None  # turns in all, dealt out to the sessions in rounds
    abort_ms: int | None = None  # after sending, where a fault makes a client abort or disconnect
    decode_pages: int | None = None  # device pages of a decode worker
