"""Functions that tests have workers call."""

import os
import signal
import time

import msgspec

from repro.base.errors import RecordError


class Doubled(msgspec.Struct, frozen=True):
    """A number, twice as large, and the process that doubled it."""

    value: float
    process: int


def double(number: float) -> Doubled:
    """Return twice the number."""
    print("said while at work")
    return Doubled(2 * number, os.getpid())


def kill_itself(number: int) -> int:
    """End the process as the system ends one that takes too much memory; not for 0."""
    if number:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def fill_the_disk(number: int) -> int:
    """Raise what a full disk raises."""
    error = RecordError(f"{number}: No space left on device")
    error.run_dir = "runs/full"
    raise error


def break_down(number: int) -> int:
    """Raise what only a bug raises."""
    raise ZeroDivisionError(f"{number} by nothing")


def sleep(seconds: float) -> str:
    """Sleep, and say whether a Ctrl-C came in between."""
    try:
        time.sleep(seconds)
    except KeyboardInterrupt:
        return "interrupted"
    return "slept"
