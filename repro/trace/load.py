"""Traces from anywhere: files and folders in any known format, as sessions."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from repro.base.errors import TraceError, nearest
from repro.trace.format import Session
from repro.trace.importers import IMPORTERS, ImportOptions, importer_of
from repro.trace.importers.base import has_keys, read_document
from repro.trace.scale import SCALE_MIN, scale_session
from repro.trace.store import DECODE_ERRORS, numbered_lines, parent_turn, read_sessions

SUFFIXES = (".json", ".jsonl", ".traj")  # what is picked up inside a folder; a named file may be called anything


def load_traces(
    paths: Sequence[Path],
    *,
    scale_tokens: float = 1.0,
    characters_per_token: float = 4.0,
    seed: int = 0,
    sessions_max: int | None = None,
) -> list[Session]:
    """Return all sessions of these files and folders, in sorted order of paths within a folder.

    Formats are told apart by content. `scale_tokens` shrinks lengths and keeps prefixes;
    `characters_per_token` and `seed` make the text of traces that have none. With `sessions_max`
    reading stops early. Raises TraceError with file, line, and what was expected.
    """
    if not SCALE_MIN <= scale_tokens <= 1.0:
        raise TraceError(f"scale_tokens is {scale_tokens}; expected from {SCALE_MIN} to 1.0 (1.0: as recorded)")
    options = ImportOptions(scale_tokens=scale_tokens, characters_per_token=characters_per_token, seed=seed)
    sessions: dict[str, Session] = {}
    origin: dict[str, Path] = {}
    for path in _files(paths):
        for session in read_trace(path, options):
            if session.id in sessions:
                raise TraceError(
                    f"{path}: session id {session.id!r} is already taken by {origin[session.id]}; "
                    "ids name requests in the report, so give one of them another id"
                )
            sessions[session.id], origin[session.id] = session, path
            if len(sessions) == sessions_max:
                return _with_known_parents(sessions, origin, cut=True)
    return _with_known_parents(sessions, origin, cut=False)


def read_trace(path: Path, options: ImportOptions) -> Iterator[Session]:
    """Yield the sessions of one file, scaled; raises TraceError."""
    first = _first_value(path)
    if has_keys(first, "turns"):
        sessions, scaled = read_sessions(path), False
    else:
        importer = importer_of(first)
        if importer is None:
            raise TraceError(f"{path}: {_unrecognised(first)}")
        sessions, scaled = importer.read(path, options), importer.scales
    for session in sessions:
        yield (session if scaled or options.scale_tokens == 1.0 else scale_session(session, options.scale_tokens))


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            found = sorted(each for each in path.rglob("*") if each.suffix in SUFFIXES and each.is_file())
            if not found:
                raise TraceError(f"{path}: no trace in this folder; expected files named {', '.join(SUFFIXES)}")
            yield from found
        elif path.exists():
            yield path
        else:
            beside = sorted(each.name for each in path.parent.iterdir()) if path.parent.is_dir() else []
            hint = f"; nearest name beside it: {nearest(path.name, beside)!r}" if beside else ""
            raise TraceError(f"{path}: no such file or folder{hint}")


def _first_value(path: Path) -> object:
    """Return the JSON value that shows the format: the first line's, or the whole document's."""
    number, line = next(iter(numbered_lines(path)))
    try:
        return msgspec.json.decode(line)
    except DECODE_ERRORS as error:
        as_line = error
    try:
        return msgspec.json.decode(read_document(path))
    except DECODE_ERRORS as as_document:
        raise TraceError(
            f"{path}: neither a JSON document ({as_document}) nor JSON Lines (line {number}: {as_line}). {_known()}"
        ) from as_document


def _unrecognised(first: object) -> str:
    if isinstance(first, dict):
        keys = sorted(map(str, first))[:12]
        return f"not a known trace format; its first object has the keys {keys}. {_known()}"
    return f"not a known trace format; it begins with a {type(first).__name__}. {_known()}"


def _known() -> str:
    names = ", ".join(importer.name for importer in IMPORTERS)
    return f"Known formats: sessions (repro/trace/store.py), {names}"


def _with_known_parents(sessions: dict[str, Session], origin: dict[str, Path], *, cut: bool) -> list[Session]:
    """Return the sessions; a parent that doesn't exist is an error, unless reading was cut short."""
    for session in sessions.values():
        parent = parent_turn(session)
        if parent is None or (parent[0] in sessions and parent[1] < len(sessions[parent[0]].turns)):
            continue
        if not cut:
            raise TraceError(
                f"{origin[session.id]}: session {session.id!r} has parent {session.parent!r}, "
                f"which names no turn of a loaded session; nearest session: {nearest(parent[0], sessions)!r}"
            )
    return list(sessions.values())
