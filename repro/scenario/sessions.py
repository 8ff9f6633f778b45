"""The sessions of a load: synthesised or from trace files, cut to the turns that are asked."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import count, islice
from pathlib import Path

import msgspec

from repro.base.errors import ScenarioError
from repro.base.rng import bits64, uniform
from repro.scenario.schema import LoadSpec
from repro.trace.format import Message, Session
from repro.trace.load import load_traces
from repro.trace.synth import synthesise

SESSIONS_CACHED = 256
TRY_TOKENS = "the system prompt alone has about 250 tokens; give 400 or more"


def sessions_of(load: LoadSpec, seed: int) -> list[Session]:
    """Return the sessions that `load` describes; a pure function of it and the seed.

    Raises TraceError for a file that is wrong, ScenarioError for what can't be synthesised.
    """
    kind = load.synthesised
    if kind is not None:
        made = [_synthesised(kind, seed, number, load.prompt_tokens) for number in range(load.sessions)]
        if not all(session.turns for session in made):
            raise ScenarioError(f"[load]: prompt_tokens = {load.prompt_tokens} is too short for a turn; {TRY_TOKENS}")
        sessions = [_with_gaps(_open_ended(session, load.answer_tokens_max), seed, *load.gap_s) for session in made]
    else:
        paths = [Path(path) for path in ([load.trace] if isinstance(load.trace, str) else load.trace)]
        sessions = load_traces(paths, scale_tokens=load.scale_tokens, seed=seed, sessions_max=load.sessions)
    if load.nonces:
        sessions = [_with_nonce(session, seed) for session in sessions]
    if load.only_sessions is not None:
        sessions = [sessions[number] for number in _present(load.only_sessions, len(sessions))]
    sessions = [session if load.turns is None else last_turns(session, load.turns) for session in sessions]
    return sessions if load.requests is None else dealt_turns(sessions, load.requests)


@lru_cache(maxsize=SESSIONS_CACHED)
def _synthesised(kind: str, seed: int, number: int, prompt_tokens: int) -> Session:
    """Return a session; the schedules of a hunt ask for the same ones again and again."""
    return synthesise(kind, seed, number, prompt_tokens_target=prompt_tokens)


def _present(numbers: Sequence[int], sessions: int) -> Sequence[int]:
    if not numbers or not all(0 <= number < sessions for number in numbers):
        raise ScenarioError(
            f"[load]: only_sessions = {list(numbers)}; give some of the numbers 0 to {sessions - 1} of the sessions"
        )
    return numbers


def _open_ended(session: Session, answer_tokens: int) -> Session:
    """Return the session with room for answers that go wrong: a right one ends by itself."""
    turns = tuple(msgspec.structs.replace(turn, max_tokens=answer_tokens) for turn in session.turns)
    return msgspec.structs.replace(session, turns=turns)


def _with_nonce(session: Session, seed: int) -> Session:
    """Return the session with a nonce in front of the user's first words, behind the system prompt that all share.

    Synthesised sessions have one already, and so may those of a file.
    """
    if session.nonce or not session.turns:
        return session
    nonce = f"{bits64(seed, 'nonce', session.id):016x}"
    first = list(session.turns[0].messages)
    place = next((at for at, message in enumerate(first) if message.role == "user"), 0)
    if not first:
        return session
    first[place] = msgspec.structs.replace(first[place], content=f"Ticket {nonce}.\n{first[place].content}")
    turn = msgspec.structs.replace(session.turns[0], messages=tuple(first))
    return msgspec.structs.replace(session, turns=(turn, *session.turns[1:]), nonce=nonce)


def _with_gaps(session: Session, seed: int, least_s: float, most_s: float) -> Session:
    """Return the session with a drawn gap before each turn but the first."""
    draws = [uniform(seed, "gap", session.id, number) for number in range(len(session.turns))]
    gaps = [0.0, *(least_s + draw * (most_s - least_s) for draw in draws[1:])]
    pairs = zip(session.turns, gaps, strict=True)
    turns = tuple(msgspec.structs.replace(turn, gap_s=round(gap_s, 6)) for turn, gap_s in pairs)
    return msgspec.structs.replace(session, turns=turns)


def last_turns(session: Session, turns: int) -> Session:
    """Return the session with only its last `turns` asked; what came before is recorded history."""
    if len(session.turns) <= turns:
        return session
    before, asked = session.turns[:-turns], session.turns[-turns:]
    history: list[Message] = []
    for turn in before:
        history.extend(turn.messages)
        if turn.reply is not None:
            history.append(turn.reply)
    first = msgspec.structs.replace(asked[0], messages=(*history, *asked[0].messages))
    return msgspec.structs.replace(session, turns=(first, *asked[1:]))


def dealt_turns(sessions: Sequence[Session], requests: int) -> list[Session]:
    """Return the sessions with their first turns, `requests` in all, dealt out in rounds; some may get none.

    What happens up to the first turn that is missing stays as it was, so a schedule's steps still fit.
    """
    asked = [0] * len(sessions)
    rounds = ((number, turn) for turn in count() for number, each in enumerate(sessions) if turn < len(each.turns))
    total = sum(len(session.turns) for session in sessions)
    for number, _ in islice(rounds, min(requests, total)):
        asked[number] += 1
    pairs = zip(sessions, asked, strict=True)
    return [msgspec.structs.replace(session, turns=session.turns[:turns]) for session, turns in pairs if turns]


def longest_wait_s(sessions: Sequence[Session]) -> float:
    """Return how long the session that waits longest waits between its turns, as recorded."""
    return max((sum(turn.gap_s for turn in session.turns) for session in sessions), default=0.0)
