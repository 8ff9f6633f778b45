"""An experiment: one scenario in several steps, each with its own load, target and faults.

    scenario tables  [target] [load] [[fault]] ...   what all steps have in common
    [[step]]         overrides of [target] and [load], faults on or off, control, seeds
      [[step.variant]]      the step again with other overrides, each with its own rate
      [[step.sensitivity]]  the same, for a table of how much an assumption matters

Every part of a step becomes an ordinary scenario file, so what it ran can be run again alone.
"""

import os
import tomllib
from pathlib import Path
from typing import Any, Literal

import msgspec

from repro.base.errors import ScenarioError, nearest
from repro.base.strict import as_toml, to_struct
from repro.base.toml import merged, tables_of, to_toml
from repro.scenario.schema import Scenario, bundled_names, bundled_text, parse

Expected = Literal["silent", "found", "rate"]
SEEDS_MAX = 100_000
ALONE = {"shape": {"kind": "closed"}, "concurrency": 1, "history": "recorded"}  # how bad requests are asked again
MERGED = ("target", "load", "exercise")  # tables that a step and its variants override key by key


class Variant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is different in one part of a step."""

    name: str
    target: dict[str, Any] = {}
    load: dict[str, Any] = {}
    seeds: int | None = None  # None: as many as the step


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One step. `expect` is what the exit code asks of it: every run clean, every run convicted, or nothing."""

    name: str
    title: str
    expect: Expected
    about: str = ""
    seeds: int = 1
    faults: bool = False
    control: bool = False
    bad_requests_of: str = ""  # asks the corrupted requests of that step again, alone, instead of the whole trace
    target: dict[str, Any] = {}
    load: dict[str, Any] = {}
    exercise: dict[str, int] = {}
    variant: tuple[Variant, ...] = ()
    sensitivity: tuple[Variant, ...] = ()


class _Steps(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an experiment's file has beyond a scenario's."""

    step: tuple[Step, ...]


class Part(msgspec.Struct, frozen=True):
    """Runs of one step that differ in their seeds only."""

    step: Step
    variant: str  # "" for a step without variants
    sensitivity: bool
    seeds: int
    tables: dict[str, Any]  # the scenario's, with the part's overrides

    @property
    def key(self) -> str:
        """Return the part's name in folders and in the JSON result."""
        words = f"{self.step.name}-{self.variant}" if self.variant else self.step.name
        return "".join(letter if letter.isalnum() else "-" for letter in words).strip("-")

    def scenario_text(self, trace: Path | None = None, sessions: int = 0) -> str:
        """Return the scenario's file; with a trace, its sessions are asked alone and one after another."""
        if trace is None:
            return to_toml(self.tables)
        load = {key: value for key, value in self.tables["load"].items() if key == "answer_tokens_max"}
        return to_toml(self.tables | {"load": load | ALONE | {"trace": str(trace), "sessions": sessions}})


class Experiment(msgspec.Struct, frozen=True):
    """An experiment, checked: every part parses as a scenario."""

    name: str
    title: str
    about: str
    defects: tuple[str, ...]
    steps: tuple[Step, ...]
    parts: tuple[Part, ...]
    source: str


def find(name: str) -> Experiment | None:
    """Return an experiment by its bundled name or by its path; None for what is none, a scenario perhaps."""
    if name.endswith(".toml") or os.sep in name:
        return _in_file(Path(name), name)
    if name not in bundled_names("experiments"):
        return None
    return parse_experiment(bundled_text(name, "experiments"), name, f"scenarios/experiments/{name}.toml")


def _in_file(path: Path, name: str) -> Experiment | None:
    """Return the experiment in a file; None for an unreadable one: the scenario's reader raises for it."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        steps = "step" in tomllib.loads(text)
    except (OSError, ValueError, RecursionError):
        return None
    return parse_experiment(text, path.stem, name) if steps else None


def parse_experiment(text: str, name: str, where: str) -> Experiment:
    """Return the experiment of a TOML text; raises ScenarioError with file, step, key and what was expected."""
    raw = tables_of(text, where)
    common = {key: value for key, value in raw.items() if key != "step"}
    scenario = parse(to_toml(common), name, where)
    steps = to_struct({"step": raw.get("step", [])}, _Steps, where).step
    _check(steps, scenario, where)
    parts = tuple(part for step in steps for part in _parts(common, step, f"{where} [[step]] {step.name}"))
    _check_keys(parts, where)
    return Experiment(name, scenario.title, scenario.about, scenario.defects, steps, parts, text)


def _check(steps: tuple[Step, ...], scenario: Scenario, where: str) -> None:
    """Raise ScenarioError for steps that cannot be run as written."""
    if not steps:
        raise ScenarioError(f"{where}: there is no [[step]]; an experiment has at least one")
    names = [step.name for step in steps]
    for number, step in enumerate(steps, 1):
        place = f"{where} [[step]] {number}"
        if not step.name or names.index(step.name) < number - 1:
            raise ScenarioError(f"{place}: name = {as_toml(step.name)}; each step needs a name of its own")
        for seeds in (step.seeds, *(each.seeds for each in (*step.variant, *step.sensitivity))):
            if seeds is not None and not 1 <= seeds <= SEEDS_MAX:
                raise ScenarioError(f"{place}: seeds = {seeds}; must be at least 1 and at most {SEEDS_MAX:,}")
        if step.faults and not scenario.faults:
            raise ScenarioError(f"{place}: faults = true, but the file has no [[fault]]")
        if step.bad_requests_of:
            _check_source(step, steps, place)


def _check_source(step: Step, steps: tuple[Step, ...], place: str) -> None:
    others = {other.name: other for other in steps if not other.bad_requests_of}
    if step.bad_requests_of not in others:
        raise ScenarioError(
            f"{place}: bad_requests_of = {as_toml(step.bad_requests_of)} is no step that asks the whole trace; "
            f'nearest: "{nearest(step.bad_requests_of, others)}"'
        )
    if step.variant or step.sensitivity or others[step.bad_requests_of].variant:
        raise ScenarioError(f"{place}: bad_requests_of goes with a step without variants, and names one without")


def _parts(common: dict[str, Any], step: Step, where: str) -> list[Part]:
    """Return a step's parts. Each is parsed as a scenario, so that a wrong key is found before anything runs."""
    of_step = merged(common, {key: getattr(step, key) for key in MERGED})
    _checked(of_step, where)
    variants = step.variant or (Variant(""),)
    first = merged(of_step, _overrides(variants[0]))
    named = [(variant, of_step, False) for variant in variants]
    named += [(variant, first, True) for variant in step.sensitivity]
    parts = []
    for variant, base, sensitivity in named:
        tables = merged(base, _overrides(variant))
        _checked(tables, f'{where} "{variant.name}"' if variant.name else where)
        title = f"{common.get('title', '')}: {step.title}" + (f" ({variant.name})" if variant.name else "")
        seeds = step.seeds if variant.seeds is None else variant.seeds
        parts.append(Part(step, variant.name, sensitivity, seeds, tables | {"title": title}))
    return parts


def _checked(tables: dict[str, Any], where: str) -> Scenario:
    return parse(to_toml(tables), "part", where)


def _overrides(variant: Variant) -> dict[str, Any]:
    return {"target": variant.target, "load": variant.load}


def _check_keys(parts: tuple[Part, ...], where: str) -> None:
    keys = [part.key for part in parts]
    for part in parts:
        if keys.count(part.key) > 1:
            raise ScenarioError(f'{where}: two parts would share the folder "{part.key}"; give one another name')


def limited(parts: tuple[Part, ...], seeds: int | None) -> tuple[Part, ...]:
    """Return the parts with at most so many seeds each."""
    if seeds is None:
        return parts
    return tuple(msgspec.structs.replace(part, seeds=min(part.seeds, seeds)) for part in parts)
