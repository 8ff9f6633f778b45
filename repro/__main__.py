"""`python -m repro`, and where the `repro` command starts: what can go wrong before and around it."""

import os
import sys

from repro.base.verdict_word import VerdictWord


def main() -> None:
    """Run the command line."""
    sys.unraisablehook = _told_unless_interrupted
    _open_standard_streams()
    try:
        from repro.cli import app

        app()
    except KeyboardInterrupt:
        sys.stderr.write("stopped by Ctrl-C before anything was recorded\n")
        sys.exit(VerdictWord.INCONCLUSIVE.exit_code)
    except OSError as error:  # of the help text: the commands tell their own
        sys.stderr.write(f"standard output: {error.strerror}\n")
        sys.exit(VerdictWord.FAILED.exit_code)


def _told_unless_interrupted(unraisable: "sys.UnraisableHookArgs") -> None:
    """Say nothing of a Ctrl-C that came while Python was in a callback of its own."""
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)


def _open_standard_streams() -> None:
    """Let closed ones go nowhere; the run's files would else get their numbers, and its words as content."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")


if __name__ == "__main__":
    main()
