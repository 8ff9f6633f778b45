"""mini-swe-agent trajectories: `*.traj.json`, format mini-swe-agent-1.1."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from repro.trace.format import Message, Session
from repro.trace.importers.base import Importer, ImportOptions, decode_document, has_keys
from repro.trace.importers.chat import RecordedMessage, message_of, session_of, turns_of

EXPECTED = "a mini-swe-agent trajectory (messages with role, content and extra.timestamp)"


class Trajectory(msgspec.Struct):
    """The parts of a trajectory file that are replayed."""

    messages: list[RecordedMessage]
    instance_id: str = ""


def read(path: Path, options: ImportOptions) -> Iterator[Session]:
    """Yield the one session; its closing `exit` message was never sent to a model."""
    trajectory = decode_document(path, Trajectory, EXPECTED)
    recorded = [message for message in trajectory.messages if message.role != "exit"]
    turns = turns_of(_with_gaps(recorded), keep_unanswered=False)
    yield session_of(trajectory.instance_id or path.name.removesuffix(".traj.json"), turns)


def _with_gaps(recorded: list[RecordedMessage]) -> Iterator[tuple[Message, float]]:
    """Yield messages with their time since the previous one: for a tool result, the tool's run time."""
    before: float | None = None
    for message in recorded:
        stamp = message.extra.get("timestamp")
        now = float(stamp) if isinstance(stamp, int | float) else None
        yield message_of(message), max(0.0, now - before) if now is not None and before is not None else 0.0
        before = before if now is None else now


def _matches(value: Any) -> bool:
    return has_keys(value, "messages") and str(value.get("trajectory_format", "")).startswith("mini-swe-agent")


IMPORTER = Importer(name="mini-swe-agent", matches=_matches, read=read)
