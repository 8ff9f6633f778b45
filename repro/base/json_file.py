"""A user's JSON file that holds one struct; errors name the next step."""

from pathlib import Path
from typing import TypeVar

import msgspec

from repro.base.errors import UsageError

T = TypeVar("T", bound=msgspec.Struct)


def read_struct(path: Path, kind: type[T], *, what: str, next_step: str) -> T:
    """Return the struct in a file. Raises UsageError, which ends in `next_step`, where there is no readable `what`."""
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
