"""Shrinking the text of recorded sessions, keeping their prefix structure.

Every message is cut by itself and by its own text alone: turns still extend each other, and two
sessions that share a system prompt still share it.
"""

import msgspec

from repro.trace.format import Message, Session, Turn

SCALE_MIN = 1e-4
SHORT_CHARACTERS = 240  # a message up to here stays whole; below, a cut loses the sense of it
NOTE_CHARACTERS = 40


def scale_session(session: Session, scale: float) -> Session:
    """Return the session with every long message cut to about `scale` of its length."""
    turns = tuple(_scale_turn(turn, scale) for turn in session.turns)
    return msgspec.structs.replace(session, turns=turns)


def scale_message(message: Message, scale: float) -> Message:
    """Return the message with its text, and each argument of its calls, cut to about `scale`."""
    calls = tuple(
        msgspec.structs.replace(call, arguments={name: _cut(value, scale) for name, value in call.arguments.items()})
        for call in message.tool_calls
    )
    return msgspec.structs.replace(message, content=_cut(message.content, scale), tool_calls=calls)


def cut_middle(text: str, characters: int) -> str:
    """Return about `characters` of the text: its first and last lines, with a note of what was cut."""
    keep = max(SHORT_CHARACTERS, characters)
    if len(text) <= keep + NOTE_CHARACTERS:
        return text
    head_end = text.rfind("\n", 0, keep // 2) + 1 or keep // 2
    tail_start = text.find("\n", len(text) - keep // 2) + 1 or len(text) - keep // 2
    note = f"[... {tail_start - head_end} characters cut ...]"
    head = text[:head_end] if text[:head_end].endswith("\n") else text[:head_end] + "\n"
    return f"{head}{note}\n{text[tail_start:]}"


def _scale_turn(turn: Turn, scale: float) -> Turn:
    return msgspec.structs.replace(
        turn,
        messages=tuple(scale_message(message, scale) for message in turn.messages),
        reply=None if turn.reply is None else scale_message(turn.reply, scale),
        max_tokens=None if turn.max_tokens is None else max(1, round(turn.max_tokens * scale)),
        abort_after_tokens=None if turn.abort_after_tokens is None else round(turn.abort_after_tokens * scale),
    )


def _cut(text: str, scale: float) -> str:
    return cut_middle(text, round(len(text) * scale))
