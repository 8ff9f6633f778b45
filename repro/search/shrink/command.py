"""`repro shrink TOKEN|RUN`: a finding made small, as a token, a scenario file and a test file."""

import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import msgspec
from msgspec.structs import replace
from rich.console import Console
from rich.live import Live
from rich.text import Text

from repro.base.errors import HarnessError, UsageError, nearest
from repro.run.judge.verdict import EXIT_CODES, Word
from repro.run.run import RunOptions
from repro.scenario.overrides import overridden, overridden_toml
from repro.scenario.schema import Scenario
from repro.schedule.overrides import Overrides
from repro.search.explain import explain
from repro.search.play import Found, Played, chief, discard, play, players, proves
from repro.search.shrink.shrink import Shrinker
from repro.search.shrink.testfile import pytest_text


class Command(msgspec.Struct, frozen=True):
    """What the command line asks for."""

    root: Path
    signature: str  # a part of it; "" for any
    budget: int
    workers: int
    json: bool


class Result(msgspec.Struct, frozen=True):
    """What `--json` prints."""

    verdict: Word
    signature: str
    token: str
    requests: int
    deviations: int
    replays: int
    scenario: str
    pytest: str
    explanation: str
    control_silent: bool
    proved: bool
    run_dir: str


def run_shrink(
    scenario: Scenario, options: RunOptions, command: Command, console: Console, errors: Console, out: Path
) -> int:
    """Shrink, write the files into `out`, tell the result, and return the exit code."""
    with Live(console=errors, refresh_per_second=4, transient=True) as live, players(command.workers) as pool:

        def told(replays: int, case: Played) -> None:
            size = f"{case.requests} requests, {len(case.deviations)} deviations"
            live.update(Text(f"{replays} of {command.budget} replays: {size}"))

        case = pool.submit(play, scenario, options, command.root).result()
        found = _chosen(case, scenario, command.signature)
        told(1, case)
        shrinker = Shrinker(
            scenario, found.signature, pool, root=command.root, budget=command.budget - 1, workers=command.workers,
            told=told,
        )  # fmt: skip
        case = shrinker.shrink(_stamped(case, scenario, found, command, pool))
        silent = _is_silent(case, scenario, found, command, pool)
    proved = proves(scenario, case, command.root)
    result = _write(case, scenario, found.signature, out, shrinker.replays + 1, silent, proved)
    if command.json:
        sys.stdout.write(msgspec.json.encode(result).decode() + "\n")
        sys.stdout.flush()
    else:
        _print(result, console)
    return EXIT_CODES[result.verdict]


def _chosen(case: Played, scenario: Scenario, wanted: str) -> Found:
    """Return the finding to keep. Raises UsageError when there is none, or none of that name."""
    if case.error:
        raise HarnessError(case.error)
    if named := [found for found in case.found if wanted in found.signature]:
        return chief(named, scenario)
    discard(case)
    if not case.found:
        raise UsageError(f"this run comes to {case.word}, without a finding: there is nothing to shrink")
    near = nearest(wanted, [found.signature for found in case.found])
    raise UsageError(f'--signature "{wanted}": this run has no such finding; nearest: "{near}"')


def _stamped(case: Played, scenario: Scenario, found: Found, command: Command, pool: ProcessPoolExecutor) -> Played:
    """Return the run without tensors if that shows the cause too: it is many times faster."""
    if overridden(scenario, case.options.overrides).config.numerics == "stamps":
        return case
    options = replace(case.options, overrides=replace(case.options.overrides, stamps=True))
    faster = pool.submit(play, scenario, options, command.root).result()
    kept, dropped = (faster, case) if found.signature in faster.signatures else (case, faster)
    discard(dropped)
    return kept


def _is_silent(case: Played, scenario: Scenario, found: Found, command: Command, pool: ProcessPoolExecutor) -> bool:
    """Return whether the cause is gone with the guard in place; else it is no finding of the defect."""
    control = pool.submit(play, scenario, replace(case.options, control=True), command.root).result()
    discard(control)
    return found.signature not in control.signatures and not control.error


def _write(
    case: Played, scenario: Scenario, signature: str, out: Path, replays: int, silent: bool, proved: bool
) -> Result:
    found = next(each for each in case.found if each.signature == signature)
    explanation = explain(found, case)
    source = overridden_toml(scenario, case.options.overrides)
    toml, test = out / f"{scenario.name}_shrunk.toml", out / f"test_{scenario.name}_shrunk.py"
    head = "".join(f"# {line}\n" for line in f"{explanation}\nrepro reproduce {case.token}".splitlines())
    whole = replace(case.options, overrides=Overrides())
    try:
        out.mkdir(parents=True, exist_ok=True)
        toml.write_text(head + source, encoding="utf-8")
        text = pytest_text(overridden(scenario, case.options.overrides), whole, signature, explanation)
        test.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{out}: cannot be written ({error.strerror}); give another folder with --out") from error
    return Result(
        "anomaly" if silent and proved else "failed", signature, case.token, case.requests, len(case.deviations),
        replays, str(toml), str(test), explanation, silent, proved, case.run_dir,
    )  # fmt: skip


def _print(result: Result, console: Console) -> None:
    size = f"{result.requests} requests, {result.deviations} deviations from the natural order"
    lines = [f"SHRUNK  {size}, after {result.replays} replays", result.signature, "", result.explanation, ""]
    if not result.control_silent:
        lines.append("NOT SILENT with the guard in place: this is no finding of the scenario's defect")
    if not result.proved:
        lines.append("A NEW PROCESS CAME TO ANOTHER RUN: a bug of the harness")
    lines += [f"replay: repro reproduce {result.token}", f"scenario: {result.scenario}", f"test: {result.pytest}"]
    lines.append(f"run: {result.run_dir}")
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
