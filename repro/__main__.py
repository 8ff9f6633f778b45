"""The entry of the `repro` command and of `python -m repro`, with what can go wrong before any command runs."""

import os
import sys

from repro.base.verdict_word import VerdictWord


def main() -> None:
    """Run the command line."""
    sys.unraisablehook = _report_unless_interrupted
    _open_standard_streams()
    try:
        from repro.cli import app

        app()
    except KeyboardInterrupt:
        sys.stderr.write("stopped by Ctrl-C before anything was recorded\n")
        sys.exit(VerdictWord.INCONCLUSIVE.exit_code)
    except OSError as error:  # printing the help text failed; commands handle their own errors
        sys.stderr.write(f"standard output: {error.strerror}\n")
        sys.exit(VerdictWord.FAILED.exit_code)


def _report_unless_interrupted(unraisable: "sys.UnraisableHookArgs") -> None:
    """Report an exception that cannot be caught, unless it is a Ctrl-C inside a callback."""
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)


def _open_standard_streams() -> None:
    """Open closed standard streams on the null device; a file of the run could get their numbers otherwise."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number is this one
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")


if __name__ == "__main__":
    main()
