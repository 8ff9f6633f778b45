"""Plain OpenAI message lists: a JSON file with one, or JSON Lines with one a line.

Each is a list of messages or an object with `messages` and perhaps `tools` and an `id`. A list that
ends with the user or a tool gets a last turn without a recorded answer.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from repro.base.errors import TraceError
from repro.trace.format import Session
from repro.trace.importers.base import Importer, ImportOptions, decode_document, decode_lines, read_document
from repro.trace.importers.chat import RecordedMessage, message_of, session_of, turns_of
from repro.trace.store import DECODE_ERRORS

EXPECTED = "a list of chat messages, or an object with `messages`"


class Conversation(msgspec.Struct):
    """A request body or a log of a chat."""

    messages: list[RecordedMessage]
    tools: list[dict[str, Any]] | None = None
    id: str = ""


Document = Conversation | list[RecordedMessage]
_document: Any = Document  # msgspec takes a union as a type, mypy does not


def read(path: Path, options: ImportOptions) -> Iterator[Session]:
    """Yield a session per message list; ids are the recorded ones or the file's name and line."""
    stem = path.name.split(".")[0]
    if _is_one_document(path):
        yield _session(decode_document(path, _document, EXPECTED), stem, str(path))
        return
    for number, value in decode_lines(path, _document, EXPECTED):
        yield _session(value, f"{stem}-{number}", f"{path}:{number}")


def _session(value: Document, name: str, where: str) -> Session:
    conversation = value if isinstance(value, Conversation) else Conversation(messages=value)
    for index, message in enumerate(conversation.messages):
        if message.role not in ("system", "developer", "user", "assistant", "tool", "function"):
            raise TraceError(
                f"{where}: message {index} has role {message.role!r}; "
                "expected system, developer, user, assistant, tool or function"
            )
    turns = turns_of(((message_of(each), 0.0) for each in conversation.messages), keep_unanswered=True)
    if not turns:
        raise TraceError(f"{where}: no message of a user or tool; expected {EXPECTED} with something to answer")
    tools = None if conversation.tools is None else tuple(conversation.tools)
    return session_of(conversation.id or name, turns, tools)


def _is_one_document(path: Path) -> bool:
    try:
        msgspec.json.decode(read_document(path), type=msgspec.Raw)
    except DECODE_ERRORS:
        return False
    return True


def _matches(value: Any) -> bool:
    messages = value.get("messages") if isinstance(value, dict) else value
    return isinstance(messages, list) and bool(messages) and isinstance(messages[0], dict) and "role" in messages[0]


IMPORTER = Importer(name="openai-messages", matches=_matches, read=read)
