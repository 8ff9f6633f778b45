"""The command line: `repro --help` lists the commands.

Standard output gets the result, and with --json one object and nothing else; progress and prose go to
standard error. What goes wrong is one sentence there, and an exit code (`common.EXIT_CODES`).
"""

from repro.cli import runs, searches, services, suites  # noqa: F401  their commands register themselves, in this order
from repro.cli.common import app

__all__ = ["app"]
