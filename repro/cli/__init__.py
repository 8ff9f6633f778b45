"""The command line: `repro --help` lists the commands.

Every call imports all command modules, so they import at their top only what declares options and what prints.
What a command runs, scenarios and detectors included, it imports inside its function; tests/cli/test_imports.py
holds that.

Standard output gets the result, and with --json one object and nothing else; progress and prose go to
standard error. What goes wrong is one sentence there, and an exit code (`common.EXIT_CODES`).
"""

from repro.cli import runs, searches, services, suites  # noqa: F401  their commands register themselves, in this order
from repro.cli.common import app

__all__ = ["app"]
