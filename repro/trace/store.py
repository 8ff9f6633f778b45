"""Reading and writing session files.

The format is JSON Lines: UTF-8, one session per line, fields as in `format.py`, unknown fields refused. A small one:

    {"id": "fix-1", "turns": [
      {"messages": [{"role": "system", "content": "You edit code."},
                    {"role": "user", "content": "Fix the bug in a.py."}],
       "reply": {"role": "assistant", "content": "I look.",
                 "tool_calls": [{"name": "read_file", "arguments": {"path": "a.py"}}]}},
      {"messages": [{"role": "tool", "content": "def f(): return 1"}], "gap_s": 0.4, "max_tokens": 200}]}

(on one line). The prompt of turn n is all messages and answers before it, then its own messages.
`gap_s` is tool or think time since the previous answer. `parent` is `ID` or `ID#TURN`: this session
starts when that turn of that session has been answered, after the first turn's `gap_s`; a session
without a parent starts at `start_s` (trace shape) or when its place comes (all other shapes).
"""

import re
from collections.abc import Iterable, Iterator
from io import BufferedReader
from pathlib import Path

import msgspec

from repro.base.errors import TraceError, nearest
from repro.trace.format import Message, Session, ToolCall, Turn

LINE_BYTES_MAX = 64 * 2**20  # a session of ten million characters fits; more is not a session file
DECODE_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)  # all that a bad line can raise
NEXT_STEP = "the format is documented in repro/trace/store.py"

_decoder = msgspec.json.Decoder(Session)
_encoder = msgspec.json.Encoder()
_known_fields = sorted({field for kind in (Session, Turn, Message, ToolCall) for field in kind.__struct_fields__})


def read_sessions(path: Path) -> Iterator[Session]:
    """Yield the sessions of a JSON Lines file; blank lines are skipped. Raises TraceError with the line."""
    for number, line in numbered_lines(path):
        try:
            session = _decoder.decode(line)
        except DECODE_ERRORS as error:
            raise line_error(path, number, error, expected="one session", known=_known_fields) from error
        _check(session, f"{path}:{number}")
        yield session


def write_sessions(path: Path, sessions: Iterable[Session]) -> int:
    """Write one session per line and return how many; the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.unfinished")
    count = 0
    with unfinished.open("wb") as file:
        for session in sessions:
            _check(session, f"session {session.id!r}")
            file.write(_encoder.encode(session) + b"\n")
            count += 1
    unfinished.replace(path)
    return count


def parent_turn(session: Session) -> tuple[str, int] | None:
    """Return (id, turn) of the answer that starts this session, or None for a session of its own."""
    if session.parent is None:
        return None
    name, mark, turn = session.parent.rpartition("#")
    return (name, int(turn)) if mark and turn.isdigit() else (session.parent, 0)


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (line number from 1, bytes) of the lines that are not blank; refuses empty files."""
    empty = True
    with open_trace(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(LINE_BYTES_MAX + 1), b""), start=1):
            if len(line) > LINE_BYTES_MAX:
                raise TraceError(
                    f"{path}:{number}: the line is longer than {LINE_BYTES_MAX} bytes; "
                    "expected one JSON object per line. Is this really a JSON Lines file?"
                )
            if line.strip():
                empty = False
                yield number, line
    if empty:
        raise TraceError(f"{path}: the file is empty; expected at least one session, {NEXT_STEP}")


def open_trace(path: Path) -> BufferedReader:
    """Return the file opened for reading bytes, or raise a TraceError that says why not."""
    try:
        return path.open("rb")
    except OSError as error:
        raise TraceError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error


def line_error(
    path: Path, line: int | None, error: Exception, *, expected: str, known: Iterable[str] = ()
) -> TraceError:
    """Return the error for what could not be decoded: where, what was expected, the nearest name."""
    where = f"{path}:{line}" if line is not None else str(path)
    unknown = re.search(r"unknown field `([^`]*)`", str(error))
    hint = f"; nearest known field: {nearest(unknown[1], known)!r}" if unknown else ""
    return TraceError(f"{where}: {error}{hint}. Expected {expected}; {NEXT_STEP}")


def _check(session: Session, where: str) -> None:
    """Refuse what the types allow and no replay can use."""
    if not session.id:
        raise TraceError(f"{where}: the session's id is empty; give every session an id of its own")
    if not session.turns:
        raise TraceError(f"{where}: session {session.id!r} has no turns; expected at least one")
    if not session.start_s >= 0:
        raise TraceError(f"{where}: start_s is {session.start_s}; expected a number of seconds from 0 on")
    for index, turn in enumerate(session.turns):
        _check_turn(turn, f"{where}: session {session.id!r}, turn {index}")


def _check_turn(turn: Turn, where: str) -> None:
    if not turn.messages:
        raise TraceError(f"{where}: no messages; expected what the user or a tool says in this turn")
    if not 0 <= turn.gap_s < float("inf"):
        raise TraceError(f"{where}: gap_s is {turn.gap_s}; expected a number of seconds from 0 on")
    if turn.max_tokens is not None and turn.max_tokens < 1:
        raise TraceError(f"{where}: max_tokens is {turn.max_tokens}; expected at least 1, or leave it out")
    if turn.abort_after_tokens is not None and turn.abort_after_tokens < 0:
        raise TraceError(f"{where}: abort_after_tokens is {turn.abort_after_tokens}; expected 0 or more")
    if turn.reply is not None and turn.reply.role != "assistant":
        raise TraceError(f"{where}: the reply's role is {turn.reply.role!r}; expected 'assistant'")
