"""`python -m repro`, and where the `repro` command starts: a Ctrl-C is answered from the first moment on."""

import sys

STOPPED = 5


def main() -> None:
    """Run the command line."""
    try:
        from repro.cli import app
    except KeyboardInterrupt:
        sys.stderr.write("stopped by Ctrl-C before anything was recorded\n")
        sys.exit(STOPPED)
    app()


if __name__ == "__main__":
    main()
