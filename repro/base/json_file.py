"""One struct in one JSON file of a user's, with errors that tell what to do."""

from pathlib import Path
from typing import TypeVar

import msgspec

from repro.base.errors import UsageError

T = TypeVar("T", bound=msgspec.Struct)


def read_struct(path: Path, kind: type[T], *, what: str, next_step: str) -> T:
    """Return the struct in a file. Raises UsageError with the next step for a file that is missing or no `what`."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); {next_step}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: no {what} ({error}); {next_step}") from error


def write_struct(path: Path, struct: msgspec.Struct) -> None:
    """Write a struct, indented for people. Raises UsageError when the path cannot be written."""
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(struct), indent=2) + b"\n")
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror}); name another file") from error
