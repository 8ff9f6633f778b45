"""SWE-agent trajectories: `*.traj`, with `history` (what the model saw) and `trajectory` (the steps)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from repro.trace.format import Message, Session
from repro.trace.importers.base import Importer, ImportOptions, decode_document, has_keys
from repro.trace.importers.chat import RecordedMessage, message_of, session_of, turns_of

EXPECTED = "a SWE-agent trajectory (history: messages; trajectory: steps with execution_time)"


class Step(msgspec.Struct):
    """One step; only its tool's run time is needed beside the history."""

    execution_time: float = 0.0


class Trajectory(msgspec.Struct):
    """The parts of a trajectory file that are replayed."""

    history: list[RecordedMessage]
    trajectory: list[Step]


def read(path: Path, options: ImportOptions) -> Iterator[Session]:
    """Yield the one session; the result of the last action was never sent to a model."""
    recorded = decode_document(path, Trajectory, EXPECTED)
    turns = turns_of(_with_gaps(recorded), keep_unanswered=False)
    yield session_of(path.name.removesuffix(".traj"), turns)


def _with_gaps(recorded: Trajectory) -> Iterator[tuple[Message, float]]:
    """Yield messages with the run time of the step before them.

    Demonstrations stand in the history before the first step, so steps are counted from the end.
    """
    answers = sum(message.role == "assistant" for message in recorded.history)
    step = len(recorded.trajectory) - answers
    ran_s = 0.0
    for message in recorded.history:
        yield message_of(message), ran_s
        ran_s = 0.0
        if message.role == "assistant":
            ran_s = recorded.trajectory[step].execution_time if 0 <= step < len(recorded.trajectory) else 0.0
            step += 1


def _matches(value: Any) -> bool:
    return has_keys(value, "history", "trajectory")


IMPORTER = Importer(name="swe-agent", matches=_matches, read=read)
