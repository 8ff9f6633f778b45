"""From a recorded list of chat messages to turns; shared by the importers of agent logs."""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from repro.trace.format import Message, Session, ToolCall, Turn

ROLES = {"developer": "system", "function": "tool"}  # older and newer names of the same thing


class RecordedFunction(msgspec.Struct):
    """The function part of a recorded tool call; arguments are JSON text or an object."""

    name: str
    arguments: str | dict[str, Any] = ""


class RecordedCall(msgspec.Struct):
    """A recorded tool call."""

    function: RecordedFunction


class RecordedMessage(msgspec.Struct):
    """A chat message as the OpenAI API has it; what else a log keeps beside it is ignored."""

    role: str
    content: str | list[dict[str, Any]] | None = None
    tool_calls: list[RecordedCall] | None = None
    extra: dict[str, Any] = {}


def message_of(recorded: RecordedMessage) -> Message:
    """Return the message in our format; parts of a content list are joined, images dropped."""
    role: Any = ROLES.get(recorded.role, recorded.role)
    calls = tuple(call_of(call.function) for call in recorded.tool_calls or ())
    return Message(role=role, content=_text_of(recorded.content), tool_calls=calls)


def call_of(function: RecordedFunction) -> ToolCall:
    """Return the call; argument values that are no strings become JSON text."""
    arguments: Any = function.arguments
    if isinstance(arguments, str):
        try:
            arguments = msgspec.json.decode(arguments or "{}")
        except msgspec.DecodeError:
            arguments = {"arguments": function.arguments}  # the model wrote broken JSON; keep what it wrote
    if not isinstance(arguments, dict):
        arguments = {"arguments": arguments}
    return ToolCall(name=function.name, arguments={name: _as_text(value) for name, value in arguments.items()})


def turns_of(messages: Iterable[tuple[Message, float]], *, keep_unanswered: bool) -> tuple[Turn, ...]:
    """Return the turns of (message, gap before the request that it is part of) pairs.

    An assistant message closes a turn; one without new input before it joins the previous answer.
    """
    turns: list[Turn] = []
    pending: list[Message] = []
    gap_s = 0.0
    for message, gap in messages:
        if message.role != "assistant":
            pending.append(message)
            gap_s += gap
        elif pending:
            turns.append(Turn(messages=tuple(pending), reply=message, gap_s=gap_s))
            pending, gap_s = [], 0.0
        elif turns:
            turns[-1] = msgspec.structs.replace(turns[-1], reply=_joined(turns[-1].reply, message))
    if pending and keep_unanswered:
        turns.append(Turn(messages=tuple(pending), gap_s=gap_s))
    return tuple(turns)


def infer_tools(turns: Sequence[Turn]) -> tuple[dict[str, Any], ...]:
    """Return function schemas for the calls in the trace, for logs that keep calls but not the schemas."""
    arguments: dict[str, dict[str, None]] = {}
    for turn in turns:
        for call in turn.reply.tool_calls if turn.reply is not None else ():
            arguments.setdefault(call.name, {}).update(dict.fromkeys(call.arguments))
    return tuple(_schema(name, list(names)) for name, names in sorted(arguments.items()))


def session_of(name: str, turns: tuple[Turn, ...], tools: tuple[dict[str, Any], ...] | None = None) -> Session:
    """Return a session with the recorded tools, or with the inferred ones."""
    return Session(id=name, turns=turns, tools=infer_tools(turns) if tools is None else tools)


def _schema(name: str, arguments: list[str]) -> dict[str, Any]:
    properties = {argument: {"type": "string"} for argument in arguments}
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def _joined(first: Message | None, second: Message) -> Message:
    if first is None:
        return second
    content = "\n".join(part for part in (first.content, second.content) if part)
    return Message(role="assistant", content=content, tool_calls=first.tool_calls + second.tool_calls)


def _text_of(content: str | list[dict[str, Any]] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "\n".join(part["text"] for part in content if isinstance(part.get("text"), str))


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
