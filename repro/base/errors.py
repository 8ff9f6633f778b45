"""The errors a user sees. Each says what, where, expected, found, and the next step.

ReproError
  UsageError        the command or a file is wrong: exit 2
    ScenarioError   a scenario file
    TraceError      a trace file, with its line
  HarnessError      the harness or the target broke: exit 4
    TargetError     the server refused, died or answered nonsense
    RecordError     the run folder could not be written
    DivergedError   a deterministic run was not: both sides are shown
  StoppedError      Ctrl-C before there was a verdict: exit 5
"""

import difflib
from collections.abc import Iterable

from repro.base.verdict_word import VerdictWord


class ReproError(Exception):
    """Base of all errors that are meant for the user's eyes."""

    word = VerdictWord.FAILED  # `--json` prints it as the verdict, and the command ends with its exit code
    run_dir = ""  # the run folder, with everything recorded until then


class UsageError(ReproError):
    """The command line or a file is wrong."""

    word = VerdictWord.USAGE_ERROR


class ScenarioError(UsageError):
    """A scenario file is wrong."""


class TraceError(UsageError):
    """A trace file is wrong; the text names file and line."""


class HarnessError(ReproError):
    """The harness or the target broke."""


class TargetError(HarnessError):
    """The server under test refused, died, or sent an unreadable answer."""


class RecordError(HarnessError):
    """The run folder could not be written."""


class DivergedError(HarnessError):
    """Two runs that must be equal differ."""


class StoppedError(ReproError):
    """Somebody stopped a run before it came to a verdict."""

    word = VerdictWord.INCONCLUSIVE


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the known name most like `name`, for an error that suggests it."""
    names = list(known)
    found = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
    return found[0] if found else "(there are none)"
