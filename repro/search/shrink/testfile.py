"""Writes a shrunk finding as a test file: fails with the defect, passes with the guard in place."""

from pprint import pformat

from repro.run.options import RunOptions
from repro.scenario.schema import Scenario
from repro.schedule.overrides import Overrides

_TEXT = '''"""{title}

{explanation}

Needs the package that `repro` comes from, and nothing else. With the defect the first test fails; the
second is the control: the same load, faults and schedule, the guard in place.
"""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from repro.run.options import RunOptions
from repro.run.run import run_scenario
from repro.scenario.schema import parse
from repro.schedule.schedule import Schedule

SIGNATURE = {signature}
SCHEDULE = {schedule}
SCENARIO = {scenario}


@pytest.mark.parametrize("control", [False, True], ids=["as_the_scenario_says", "guard_in_place"])
def test_the_race_is_gone(control: bool, tmp_path: Path) -> None:
    scenario = parse(SCENARIO, {name}, "SCENARIO")
    options = RunOptions({seed}, control, {no_faults}, SCHEDULE)
    outcome = run_scenario(scenario, options, root=tmp_path, utc=datetime(2026, 1, 1, tzinfo=UTC))
    claims = [finding.claim for finding in outcome.findings if finding.signature == SIGNATURE]
    assert not claims, claims[0]
'''


def pytest_text(scenario: Scenario, options: RunOptions, signature: str, explanation: str) -> str:
    """Return the text; `scenario` is the overridden one, so that the file holds all that is run."""
    assert options.overrides == Overrides()
    return _TEXT.format(
        title=_escaped(scenario.title),
        explanation=_escaped(explanation),
        signature=pformat(signature),
        schedule=repr(options.schedule),
        scenario=_literal(scenario.source),
        name=pformat(scenario.name),
        seed=options.seed,
        no_faults=options.no_faults,
    )


def _literal(text: str) -> str:
    """Return a text as Python writes it, over as many lines as it has."""
    return '"""' + _escaped(text).rstrip("\n") + '\n"""'


def _escaped(text: str) -> str:
    """Return a text as it stands between triple quotes."""
    return text.replace("\\", "\\\\").replace('"""', '\\"\\"\\"')
