"""The bad requests of a run, to be asked again alone: each a session of one turn, its history as recorded."""

from collections.abc import Sequence

import msgspec

from repro.record.requests import RequestRecord
from repro.scenario.sessions import last_turns
from repro.trace.format import Session


def bad_requests(records: Sequence[RequestRecord], sessions: Sequence[Session]) -> list[Session]:
    """Return what the corrupted and poisoned requests of a run had asked, in the run's order."""
    by_id = {session.id: session for session in sessions}
    bad = {(each.session, each.turn): None for each in records if each.corrupted or each.poisoned}
    return [_as_session(by_id[session], turn) for session, turn in bad]


def _as_session(session: Session, turn: int) -> Session:
    """Return one turn as a session that begins at once, with the turns before it as recorded history."""
    until = msgspec.structs.replace(session, turns=session.turns[: turn + 1])
    (asked,) = last_turns(until, 1).turns
    at_once = msgspec.structs.replace(asked, gap_s=0.0)
    return msgspec.structs.replace(session, id=f"{session.id}.{turn}", turns=(at_once,), start_s=0.0, parent=None)
