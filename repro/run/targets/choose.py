"""Which target a run has: the only place that asks for its kind."""

from collections.abc import Sequence

from repro.base.errors import UsageError
from repro.run.options import RunOptions
from repro.run.targets.base import Target
from repro.run.targets.bundled import BundledTarget, SGLangClassesTarget
from repro.run.targets.url import UrlTarget
from repro.scenario.schema import Scenario
from repro.serve.guards import Guards
from repro.serve.stack import Build
from repro.trace.format import Session


def choose_target(
    scenario: Scenario, options: RunOptions, sessions: Sequence[Session], guards: Guards | None, build: Build
) -> Target:
    """Return the target of a run. Raises UsageError for what it cannot do.

    `guards` and `build` are for the bundled stack.
    """
    if options.url:
        return UrlTarget(scenario, options, sessions)
    if options.redact:
        raise UsageError("--redact needs a server at a URL: every token of the bundled stack is among its events")
    if scenario.engine == "sglang":
        return SGLangClassesTarget(scenario, options, sessions)
    return BundledTarget(scenario, options, sessions, guards, build)
