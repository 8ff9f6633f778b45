"""An answer's text to content and tool calls, whole or while it streams."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from repro.serve.server.replies import CalledFunction
from repro.serve.server.schema import Tool

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_NAME = re.compile(rf"{OPEN}([^<]*)(?=<)")
# Atomic groups: a key or value ends at its first end tag, never at a later one.
_ARGUMENT = re.compile(r"<arg_key>(?>(.*?)</arg_key>)\s*<arg_value>(?>(.*?)</arg_value>)\s*", re.DOTALL)
_CLOSE = re.compile(rf"{CLOSE}\s*")


@dataclass(frozen=True)
class ParsedCall:
    """A tool call the model wrote; values are the text between the tags."""

    name: str
    arguments: dict[str, str]


def parse(text: str) -> tuple[str, tuple[ParsedCall, ...]]:
    """Return (content, tool calls) of an answer without its end token; never raises.

    Tool calls count only when well-formed calls are all that follows the content; anything else is
    content, so that nothing a confused model says is lost.
    """
    start = text.find(OPEN)
    calls = _calls(text, start) if start >= 0 else None
    return (text, ()) if calls is None else (text[:start], calls)


def _calls(text: str, position: int) -> tuple[ParsedCall, ...] | None:
    """Return the calls if `text` is nothing but well-formed calls from `position` on, else None."""
    calls: list[ParsedCall] = []
    while position < len(text):
        name = _NAME.match(text, position)
        if name is None or not name[1].strip():
            return None
        arguments: dict[str, str] = {}
        position = name.end()
        while (close := _CLOSE.match(text, position)) is None:
            argument = _ARGUMENT.match(text, position)
            if argument is None:
                return None
            arguments[argument[1]] = argument[2]
            position = argument.end()
        calls.append(ParsedCall(name[1].strip(), arguments))
        position = close.end()
    return tuple(calls)


class ToolCallReader:
    """Splits an answer into content and calls; a call comes out as soon as it is complete.

    Whole answers go through it too, so both ways give the same. What only looks like a call comes out
    as content, at the latest at the end: nothing that the model wrote is lost.
    """

    def __init__(self) -> None:
        self._held = ""  # text that may still become a call
        self._searched = 0  # no complete call ends before this place of `_held`

    def feed(self, text: str) -> list[str | ParsedCall]:
        """Take more text; return what is certain now."""
        self._held += text
        pieces: list[str | ParsedCall] = []
        while self._take(pieces):
            pass
        return pieces

    def end(self) -> list[str | ParsedCall]:
        """Return what is left at the end of the answer."""
        rest, self._held = self._held, ""
        return [rest] if rest else []

    def _take(self, pieces: list[str | ParsedCall]) -> bool:
        """Move one piece out of the held text; False when nothing more is certain."""
        start = self._held.find(OPEN)
        if start < 0:
            start = len(self._held) - _opening(self._held)
        if start > 0:
            pieces.append(self._held[:start])
            self._held, self._searched = self._held[start:], 0
            return True
        end = self._held.find(CLOSE, self._searched)
        if end < 0:
            self._searched = max(0, len(self._held) - len(CLOSE))
            return False
        end += len(CLOSE)
        content, calls = parse(self._held[:end])
        if content or len(calls) != 1:  # this end tag stood inside an argument: wait for the next one
            self._searched = end
            return True
        pieces.append(calls[0])
        self._held, self._searched = self._held[end:], 0
        return True


class CallWriter:
    """Turns parsed calls into functions with JSON arguments, typed as the declared tools say."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        self._properties = {tool.function.name: _properties(tool) for tool in tools}

    def write(self, call: ParsedCall) -> CalledFunction:
        """Return the call with its arguments as JSON text."""
        declared = self._properties.get(call.name, {})
        values = {name: _value(text, declared.get(name)) for name, text in call.arguments.items()}
        return CalledFunction(call.name, msgspec.json.encode(values).decode())


def _opening(text: str) -> int:
    """Return the length of the longest end of `text` that may be the beginning of an opening tag."""
    lengths = range(min(len(OPEN) - 1, len(text)), 0, -1)
    return next((length for length in lengths if text.endswith(OPEN[:length])), 0)


def _properties(tool: Tool) -> dict[str, object]:
    properties = (tool.function.parameters or {}).get("properties")
    return properties if isinstance(properties, dict) else {}


def _value(text: str, declared: object) -> object:
    """Return an argument: text as it is unless the schema declares another type and it reads as JSON."""
    kind = declared.get("type") if isinstance(declared, dict) else None
    if kind is None or kind == "string":
        return text
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return text
