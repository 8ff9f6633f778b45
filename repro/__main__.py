"""`python -m repro`, and where the `repro` command starts: a Ctrl-C is answered from the first moment on."""

import sys

STOPPED = 5


def main() -> None:
    """Run the command line."""
    sys.unraisablehook = _told_unless_interrupted
    try:
        from repro.cli import app
    except KeyboardInterrupt:
        sys.stderr.write("stopped by Ctrl-C before anything was recorded\n")
        sys.exit(STOPPED)
    app()


def _told_unless_interrupted(unraisable: "sys.UnraisableHookArgs") -> None:
    """Say nothing of a Ctrl-C that came while Python was in a callback of its own."""
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)


if __name__ == "__main__":
    main()
