"""Runs again what a token or a run folder names, and proves that it was the same."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path

import msgspec

from detectors.base import decode_finding
from repro.base.errors import DivergedError, ReproError, UsageError
from repro.base.probe import AnyEvent
from repro.record.events import canonical, fingerprint_of
from repro.record.verdict import RunVerdict
from repro.record.view import Run, open_run
from repro.run.opening import versions
from repro.run.options import RunOptions
from repro.run.outcome import Outcome
from repro.scenario import schema as scenarios
from repro.scenario.schema import Scenario
from repro.schedule import token as tokens

RUNS_SEARCHED_MAX = 10_000  # the newest ones
EVENT_CHARACTERS_MAX = 2000  # shown of each side of a difference


@dataclass(frozen=True)
class Recipe:
    """What to run again, what must come out, and what is known to be different here.

    `fingerprint` is whole, or its first digits, or "" for a run that an accident cut off: of that one the
    first `events` events are compared. `changed` says that the folder is not what the run wrote.
    """

    scenario: Scenario
    options: RunOptions
    fingerprint: str
    earlier: Run | None = None
    events: int | None = None
    changed: bool = False
    warnings: tuple[str, ...] = ()


def recipe_of(name: str, runs: Path) -> Recipe:
    """Return the recipe of a run folder or a token; raises UsageError when its inputs are not here.

    A token's run is looked for in `runs`: its folder has the scenario, whoever wrote that, and the events.
    """
    if _is_path(name):
        return _recipe_of_run(open_run(Path(name)))
    token = tokens.decode(name)
    run = _run_of(name.strip(), runs)
    if run is not None:
        return _recipe_of_run(run)
    if token.elsewhere:
        raise UsageError(
            f"the token is whole, but its schedule is too long for 64 characters: it stands in the folder of its "
            f"run, and that is not in {runs}/. Say with --runs where it is, or give the folder"
        )
    for bundled in map(scenarios.find, scenarios.bundled_names()):
        if tokens.scenario_hash(bundled.source) == token.scenario:
            options = RunOptions(token.seed, token.control, token.no_faults, token.schedule, token.overrides)
            return Recipe(bundled, options, token.fingerprint, warnings=_other_inputs(token))
    raise UsageError(
        f"the token is whole, but its scenario is none of this package's (another version, or a file or traces of "
        f"your own), and its run is not in {runs}/ either. Give the folder of the run, repro reproduce "
        "runs/SCENARIO/UTC-SEED, or say with --runs where its runs are"
    )


def prove(recipe: Recipe, outcome: Outcome) -> str:
    """Return in words what was found equal. Raises DivergedError with the first event that differs."""
    same = outcome.fingerprint.startswith(recipe.fingerprint)
    if recipe.fingerprint and same and not recipe.changed:
        return f"the same run: fingerprint {outcome.fingerprint[: tokens.FINGERPRINT_DIGITS]} matches"
    later = open_run(outcome.path)
    difference = None if recipe.earlier is None else first_difference(recipe.earlier, later, recipe.events)
    if not recipe.fingerprint and difference is None:
        return f"the same run as far as it had come: its {recipe.events or 0:,} events are equal"
    text = ["not the same run" if not same or difference else "the same run, but its folder tells another one"]
    if not same:
        text.append(f"expected fingerprint {recipe.fingerprint}, got {outcome.fingerprint}")
    if recipe.earlier is not None:
        text.append(difference or "all events are equal; the findings differ")
    warnings = recipe.warnings + _other_sessions(recipe.earlier, later)
    text += warnings or (f"nothing is known to be different, so this is a bug of the harness; keep {outcome.path}",)
    error = DivergedError("\n".join(text))
    error.run_dir = str(outcome.path)
    raise error


def first_difference(earlier: Run, later: Run, events: int | None = None) -> str | None:
    """Return the first event that differs, both sides, in words; None when they are equal.

    With `events`, only so many of the earlier run's are compared.
    """
    pairs = zip_longest(islice(earlier.recorded(), events), islice(later.recorded(), events))
    for number, (one, other) in enumerate(pairs, 1):
        before, now = _line(one), _line(other)
        if before != now:
            return f"event {number} differs\n  before: {_cut_line(before)}\n  now:    {_cut_line(now)}"
    return None


def _line(event: AnyEvent | None) -> str:
    return "(the log ends)" if event is None else canonical(event).decode()


def _cut_line(line: str) -> str:
    return line if len(line) <= EVENT_CHARACTERS_MAX else f"{line[:EVENT_CHARACTERS_MAX]}..."


def _is_path(name: str) -> bool:
    try:
        return os.sep in name or Path(name).exists()
    except OSError:  # too long for a name
        return False


def _run_of(token: str, runs: Path) -> Run | None:
    files = sorted(runs.glob("*/*/run.json"), key=lambda file: file.parent.name, reverse=True)
    for file in files[:RUNS_SEARCHED_MAX]:
        try:
            run = open_run(file)
        except ReproError:
            continue  # not the one that is looked for: it has no token
        if run.verdict is not None and run.verdict.token == token:
            return run
    return None


def _recipe_of_run(run: Run) -> Recipe:
    try:
        options = msgspec.convert(run.meta.config, RunOptions)
        source = run.scenario_toml
    except (msgspec.ValidationError, OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{run.path}: not as a run of this package leaves it ({error})") from error
    if options.url:
        raise UsageError(
            f"{run.path}: this run was against {options.url}, and a server of its own time can't be replayed. "
            "Send the same load again with repro replay, or use a run on the bundled stack"
        )
    if not source:
        raise UsageError(f"{run.path}: scenario.toml is missing, so there is nothing to run again")
    scenario = scenarios.parse(source, run.meta.scenario, str(run.path / "scenario.toml"))
    warnings = _other_versions(run.meta.versions, versions())
    verdict = run.verdict
    if verdict is None or (verdict.cut is not None and not verdict.token):
        return _recipe_of_cut_run(run, scenario, options, verdict, warnings)
    if _is_of_another_scenario(verdict.token, source):
        warnings += (f"{run.path}/scenario.toml was changed after the run",)
    findings = run.findings(decode_finding)
    changed = not run.meta.dropped_events and verdict.fingerprint != fingerprint_of(run.recorded(), findings)
    if changed:
        warnings += (f"{run.path} was changed after the run: its events and findings don't give its fingerprint",)
    return Recipe(scenario, options, verdict.fingerprint, run, None, changed, warnings)


def _is_of_another_scenario(token: str, source: str) -> bool:
    try:
        return bool(token) and tokens.decode(token).scenario != tokens.scenario_hash(source)
    except UsageError:  # a token of another version; the fingerprint shows whether the scenario differs
        return False


def _recipe_of_cut_run(
    run: Run, scenario: Scenario, options: RunOptions, verdict: RunVerdict | None, warnings: tuple[str, ...]
) -> Recipe:
    """Return the recipe of a run that has no fingerprint: the events before the cut must come again."""
    if verdict is not None and verdict.cut is not None:
        events, why = verdict.cut.event, verdict.cut.why
    elif run.whole:  # the record does not say where a Ctrl-C or an error cut it
        events, why = 0, run.meta.error or run.meta.state
    else:
        events, why = sum(1 for _ in run.recorded()), "it was killed"
    note = f"{run.path} was cut off ({why}); it runs again in full, and the first {events:,} events are compared"
    return Recipe(scenario, options, "", run, events, False, (note, *warnings))


def _other_inputs(token: tokens.Token) -> tuple[str, ...]:
    warnings = []
    if token.code != tokens.code_hash():
        warnings.append("the token was made by other code or another checkpoint; the fingerprint may differ")
    if token.machine != tokens.machine_hash():
        warnings.append(f"the token was made on another type of processor (this one: {tokens.machine_class()})")
    return tuple(warnings)


def _other_versions(before: Mapping[str, str], now: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(
        f"the run was made with {name} {before[name]}; here it is {now[name]}"
        for name in now
        if name in before and before[name] != now[name]
    )


def _other_sessions(earlier: Run | None, later: Run) -> tuple[str, ...]:
    before = {} if earlier is None else earlier.meta.versions
    same = before.get("sessions") in (None, later.meta.versions.get("sessions"))
    return () if same else ("the sessions are not those of that run: its trace files have changed",)
