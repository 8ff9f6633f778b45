"""The session format: what a coding agent asked, turn by turn, and what it was answered.

A file is JSON Lines, one `Session` per line. A turn holds the messages that are new since the
previous answer; the driver rebuilds the history, so a file of long sessions stays small.
"""

from typing import Any, Literal

import msgspec


class ToolCall(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A function call in an assistant message; argument order is the order of the text."""

    name: str
    arguments: dict[str, str]


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One chat message."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()


class Turn(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One request: the new input messages, and the recorded answer if any."""

    messages: tuple[Message, ...]
    reply: Message | None = None
    max_tokens: int | None = None
    gap_s: float = 0.0  # tool or think time between the previous answer and this request
    abort_after_tokens: int | None = None  # the recorded user cancelled after so many tokens


class Session(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A whole agent session; `parent` names the session whose turn started this sub-agent."""

    id: str
    turns: tuple[Turn, ...]
    tools: tuple[dict[str, Any], ...] = ()
    start_s: float = 0.0
    parent: str | None = None
    nonce: str | None = None  # unique text of this session; seen elsewhere it proves a leak
