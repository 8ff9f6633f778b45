"""What an importer is, and how importers decode files, with errors that name file and line."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from repro.base.errors import TraceError
from repro.trace.store import DECODE_ERRORS, line_error, numbered_lines, open_trace

FILE_BYTES_MAX = 512 * 2**20  # one JSON document; JSON Lines files may be longer

Kind = TypeVar("Kind")


class ImportOptions(msgspec.Struct, frozen=True):
    """How to make text where a trace has only lengths."""

    scale_tokens: float = 1.0
    characters_per_token: float = 4.0
    seed: int = 0


class Importer(msgspec.Struct, frozen=True):
    """One trace format: how to recognise it by its first JSON value, and how to read a file of it.

    `scales` is True when `read` has applied `scale_tokens` itself (formats without text).
    """

    name: str
    matches: Callable[[Any], bool]
    read: Callable[[Path, ImportOptions], Iterator[Any]]
    scales: bool = False


def has_keys(value: Any, *names: str) -> bool:
    """Tell whether a JSON value is an object with all of these keys."""
    return isinstance(value, dict) and all(name in value for name in names)


def read_document(path: Path) -> bytes:
    """Return the bytes of a file that is one JSON document."""
    with open_trace(path) as file:
        text = file.read(FILE_BYTES_MAX + 1)
    if len(text) > FILE_BYTES_MAX:
        raise TraceError(f"{path}: longer than {FILE_BYTES_MAX} bytes; split it, or convert it to JSON Lines")
    return text


def decode_document(path: Path, kind: type[Kind], expected: str) -> Kind:
    """Return the file's only JSON value as `kind`; raises TraceError."""
    try:
        return msgspec.json.decode(read_document(path), type=kind)
    except DECODE_ERRORS as error:
        raise line_error(path, None, error, expected=expected) from error


def decode_lines(path: Path, kind: type[Kind], expected: str) -> Iterator[tuple[int, Kind]]:
    """Yield (line number, value) of a JSON Lines file; raises TraceError with the line."""
    decoder = msgspec.json.Decoder(kind)
    for number, line in numbered_lines(path):
        try:
            yield number, decoder.decode(line)
        except DECODE_ERRORS as error:
            raise line_error(path, number, error, expected=expected) from error
