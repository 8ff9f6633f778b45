"""A suite: scenarios and traces with their budgets, what is checked of each, and the gates of the night.

[base.target] [base.load]   overrides of every case
[[case]]                    a scenario or traces, with overrides; seeds, and the properties that are checked
[gates]                     what makes the night fail although no single case does
"""

import os
import tomllib
from pathlib import Path
from typing import Any, Literal, Self

import msgspec

from repro.base.errors import ScenarioError, nearest
from repro.base.strict import as_toml, to_struct
from repro.base.toml import merged, tables_of, to_toml
from repro.fleet.nightly.sequential import Sequential
from repro.scenario.from_traces import REPLAY, replay_scenario
from repro.scenario.schema import Scenario, bundled_names, bundled_text, find, parse

Property = Literal["silent", "found"]
FORMAT = 1
SEEDS_MAX = 100_000
NIGHT_S_MAX = 7 * 24 * 3600.0
REQUESTS_MAX = 1_000_000_000


class Overrides(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is set on top of a scenario, key by key."""

    target: dict[str, Any] = {}
    load: dict[str, Any] = {}
    exercise: dict[str, int] | None = None  # replaces the scenario's floors: a smaller load meets smaller ones
    detect: dict[str, Any] = {}
    limits: dict[str, Any] = {}
    fault: tuple[dict[str, Any], ...] | None = None  # instead of the scenario's, for loads that meet few of its hits

    def applied_to(self, tables: dict[str, Any]) -> dict[str, Any]:
        """Return a scenario's tables with these on top, down to the keys of inner tables such as target.pd."""
        merged_tables = {"target": self.target, "load": self.load, "detect": self.detect, "limits": self.limits}
        result = merged(tables, {key: value for key, value in merged_tables.items() if value})
        replaced = {"exercise": self.exercise, "fault": None if self.fault is None else list(self.fault)}
        return result | {key: value for key, value in replaced.items() if value is not None}


class Case(Overrides, frozen=True, forbid_unknown_fields=True):
    """One scenario, or one set of traces, and how much of it is run."""

    scenario: str = ""
    traces: tuple[str, ...] = ()  # instead of a scenario
    name: str = ""  # label in reports; empty takes the scenario's name
    seeds: int = 1
    check: tuple[Property, ...] = ("silent",)
    picker: Literal["timed", "random"] = "timed"
    requests_to_find_max: int | None = None  # "found" asks for the first finding within so many requests of a run
    runs_found_min: int | None = None  # "found" asks for so many runs; all of them if not given
    sequential: Sequential | None = None  # stops the case's seeds early, once its rate is known

    @property
    def label(self) -> str:
        """Return the case's name."""
        return self.name or Path(self.scenario or self.traces[0]).stem


class Gates(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Thresholds of the whole night, over its silent cases; None is no gate."""

    rate_high_max: float | None = None  # upper end of the interval, over sessions, of the rate of wrong requests
    new_findings_max: int | None = 0  # signatures that no past night of this suite has had
    vacuous_runs_max: int = 0
    same_within: float = 0.01  # a rate counts as the baseline's if the interval of their difference lies within this
    throughput_ratio_min: float | None = None  # tokens per second, against the reference measured in the same job


class Budget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What bounds a night. Runs are taken in turn: seed 0 of every case, then seed 1, and so on."""

    time_s: float | None = None
    requests: int | None = None
    evidence_bytes: int = 2 * 2**30  # space for run folders; beyond it event logs are removed first


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    title: str
    about: str = ""
    base: Overrides = Overrides()
    case: tuple[Case, ...] = ()
    gates: Gates = Gates()
    budget: Budget = Budget()


class Suite(msgspec.Struct, frozen=True):
    """A suite, checked: the scenario of every case parses. `scenarios` goes with `cases`, one for one."""

    name: str
    title: str
    about: str
    cases: tuple[Case, ...]
    scenarios: tuple[Scenario, ...]
    gates: Gates
    budget: Budget
    source: str

    def with_budget(self, *, time_s: float | None, requests: int | None) -> Self:
        """Return the suite with what the command line sets instead."""
        given = {"time_s": time_s, "requests": requests}
        changes = {key: value for key, value in given.items() if value is not None}
        return msgspec.structs.replace(self, budget=msgspec.structs.replace(self.budget, **changes))


def find_suite(name: str) -> Suite:
    """Return a suite by its bundled name or by the path of a TOML file."""
    if name.endswith(".toml") or os.sep in name:
        try:
            text = Path(name).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise ScenarioError(f"{name}: cannot be read ({error}); give a suite's name or a .toml file") from error
        return parse_suite(text, Path(name).stem, name)
    suites = bundled_names("suites")
    if name not in suites:
        found = nearest(name, suites)
        raise ScenarioError(f'--suite {name}: there is no such suite; nearest: "{found}", or give a .toml file')
    return parse_suite(bundled_text(name, "suites"), name, f"scenarios/suites/{name}.toml")


def parse_suite(text: str, name: str, where: str) -> Suite:
    """Return the suite of a TOML text; raises ScenarioError with file, table, key and what was expected."""
    raw = tables_of(text, where)
    file = to_struct(raw, _File, where)
    _check(file, where)
    made = [_scenario(case, file.base, f"{where} [[case]] {number + 1}") for number, case in enumerate(file.case)]
    return Suite(name, file.title, file.about, file.case, tuple(made), file.gates, file.budget, text)


def _check(file: _File, where: str) -> None:
    if file.format != FORMAT:
        raise ScenarioError(f"{where}: format = {file.format}; this version reads {FORMAT}")
    if not file.case:
        raise ScenarioError(f"{where}: there is no [[case]]; a suite has at least one")
    labels = []
    for number, case in enumerate(file.case):
        place = f"{where} [[case]] {number + 1}"
        if bool(case.scenario) == bool(case.traces):
            raise ScenarioError(f"{place}: give either scenario or traces")
        if not case.check:
            raise ScenarioError(f'{place}: check is empty; give "silent", "found", or both')
        _check_bounds({"seeds": case.seeds, "runs_found_min": case.runs_found_min}, 1, SEEDS_MAX, place)
        _check_bounds({"requests_to_find_max": case.requests_to_find_max}, 1, REQUESTS_MAX, place)
        if case.sequential is not None:
            case.sequential.check(place)
        if case.label in labels:
            raise ScenarioError(f'{place}: two cases are called "{case.label}"; give one a name of its own')
        labels.append(case.label)
    shares = {"rate_high_max": file.gates.rate_high_max, "throughput_ratio_min": file.gates.throughput_ratio_min}
    shares["same_within"] = file.gates.same_within
    _check_bounds(shares, 0, 1, f"{where} [gates]")
    runs = {"vacuous_runs_max": file.gates.vacuous_runs_max, "new_findings_max": file.gates.new_findings_max}
    _check_bounds(runs, 0, REQUESTS_MAX, f"{where} [gates]")
    _check_bounds({"time_s": file.budget.time_s}, 1, NIGHT_S_MAX, f"{where} [budget]")
    _check_bounds({"requests": file.budget.requests}, 1, REQUESTS_MAX, f"{where} [budget]")


def _check_bounds(values: dict[str, Any], least: float, most: float, where: str) -> None:
    for key, value in values.items():
        if value is not None and not least <= value <= most:
            raise ScenarioError(f"{where}: {key} = {value}; must be at least {least:g} and at most {most:,.15g}")


def _scenario(case: Case, base: Overrides, where: str) -> Scenario:
    """Return the scenario that a case runs, checked with all overrides on."""
    if case.traces:
        found = replay_scenario(REPLAY, [Path(path) for path in case.traces])
    elif case.scenario in bundled_names() or case.scenario.endswith(".toml"):
        found = find(case.scenario)
    else:
        close = nearest(case.scenario, bundled_names())
        raise ScenarioError(f'{where}: scenario = {as_toml(case.scenario)} is none of the bundled; nearest: "{close}"')
    if "found" in case.check and not found.defects:
        raise ScenarioError(f'{where}: check = ["found"], but {case.label} has no defect: there is nothing to find')
    tables = case.applied_to(base.applied_to(tomllib.loads(found.source)))
    return parse(to_toml(tables), found.name, where)
