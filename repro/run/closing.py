"""What a run leaves when it goes wrong: a closed folder, and an error that names it."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal

import msgspec

from repro.base.errors import HarnessError, RecordError, ReproError, StoppedError, TargetError, UsageError
from repro.record.folder import RunFolder, write_meta

CRASH_FILE = "crash.txt"
EXPECTED = (UsageError, TargetError, RecordError)  # their sentence says all


@contextmanager
def kept(folder: RunFolder) -> Iterator[None]:
    """Close the folder whatever goes wrong inside; what comes out is a ReproError that names it."""
    try:
        yield
    except KeyboardInterrupt as error:
        stopped = StoppedError("stopped by Ctrl-C before there was a verdict")
        _close_after(folder, "interrupted", stopped)
        raise stopped from error
    except ReproError as error:
        if not isinstance(error, EXPECTED):
            _write_crash(folder, error)
        _close_after(folder, "failed", error)
        raise
    except MemoryError as error:
        out = HarnessError(f"out of memory: {error}; make the target's pools, the sessions or the concurrency smaller")
        _close_after(folder, "failed", out)
        raise out from error
    except Exception as error:
        crash = HarnessError(f"a bug of the harness: {type(error).__name__}: {error}; {CRASH_FILE} has the place")
        _write_crash(folder, error)
        _close_after(folder, "failed", crash)
        raise crash from error


def _close_after(folder: RunFolder, state: Literal["interrupted", "failed"], error: ReproError) -> None:
    error.run_dir = str(folder.path)
    with suppress(RecordError):  # the first error is the one to tell
        folder.close(state, error=str(error))
        if folder.meta.error != str(error):  # it was being closed with a verdict when the disk refused
            write_meta(folder.path, msgspec.structs.replace(folder.meta, state=state, error=str(error), verdict=None))


def _write_crash(folder: RunFolder, error: BaseException) -> None:
    with suppress(OSError):
        text = "".join(traceback.format_exception(error))
        (folder.path / CRASH_FILE).write_text(text, encoding="utf-8", errors="backslashreplace")
