"""A finding made small: plays it, shrinks it, and writes it down as a token, a scenario file and a test file."""

from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec.structs import replace

from detectors.base import Finding
from repro.base.errors import HarnessError, UsageError, nearest
from repro.base.verdict_word import VerdictWord
from repro.pool.call import Died, Pool
from repro.pool.local import LocalPool
from repro.run.options import RunOptions
from repro.scenario.overrides import overridden, overridden_toml
from repro.scenario.schema import Scenario
from repro.schedule.overrides import Overrides
from repro.search.explain import explain
from repro.search.play import Played, Trial, chief, comes_again, discard, killed, play, play_all, play_if_sensible
from repro.search.shrink.shrinker import Shrinker
from repro.search.shrink.testfile import pytest_text


class Shrinking(msgspec.Struct, frozen=True, kw_only=True):
    """What to keep of a run, with which effort, and where the files go."""

    signature: str  # part of the finding's signature; "" for what the scenario expects
    budget: int  # replays
    workers: int
    root: Path
    out: Path


class Result(msgspec.Struct, frozen=True):
    """What `repro shrink --json` prints."""

    verdict: VerdictWord
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


def shrink(scenario: Scenario, options: RunOptions, shrinking: Shrinking, on_progress: Callable[[str], None]) -> Result:
    """Shrink what this run finds and write the files. `on_progress` hears a line after each smaller case.

    Raises UsageError for a run without the finding, and HarnessError for one that comes to nothing.
    """

    def progress(replays: int, case: Played) -> None:
        size = f"{case.requests} requests, {len(case.deviations)} deviations"
        on_progress(f"{replays} of {shrinking.budget} replays: {size}")

    trial = Trial(scenario, options, str(shrinking.root))
    with LocalPool(shrinking.workers, calls_each=None) as pool:
        (case,) = play_all(pool, [trial], play)
        found = _chosen(case, scenario, shrinking.signature)
        progress(1, case)
        shrinker = Shrinker(
            scenario, found.signature, pool, root=shrinking.root, budget=shrinking.budget - 1,
            workers=shrinking.workers, on_smaller=progress,
        )  # fmt: skip
        case = shrinker.shrink(_in_stamps(case, trial, found, pool))
        silent = _is_silent(case, trial, found, pool)
    again = comes_again(scenario, case, shrinking.root)
    if isinstance(again, Died):
        raise HarnessError(killed(again))
    return _write(case, scenario, found.signature, shrinking.out, shrinker.replays + 1, silent=silent, proved=again)


def _chosen(case: Played, scenario: Scenario, wanted: str) -> Finding:
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


def _in_stamps(case: Played, trial: Trial, found: Finding, pool: Pool) -> Played:
    """Return the run without tensors if that shows the cause too: it is many times faster."""
    if overridden(trial.scenario, case.options.overrides).config.numerics == "stamps":
        return case
    options = replace(case.options, overrides=replace(case.options.overrides, stamps=True))
    (faster,) = play_all(pool, [replace(trial, options=options)], play_if_sensible)
    chosen, dropped = (faster, case) if found.signature in faster.signatures else (case, faster)
    discard(dropped)
    return chosen


def _is_silent(case: Played, trial: Trial, found: Finding, pool: Pool) -> bool:
    """Return whether the cause is gone with the guard in place; else it is no finding of the defect."""
    options = replace(case.options, control=True)
    (control,) = play_all(pool, [replace(trial, options=options)], play_if_sensible)
    discard(control)
    return found.signature not in control.signatures and not control.error


def _write(
    case: Played, scenario: Scenario, signature: str, out: Path, replays: int, *, silent: bool, proved: bool
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
        VerdictWord.ANOMALY if silent and proved else VerdictWord.FAILED, signature, case.token, case.requests,
        len(case.deviations), replays, str(toml), str(test), explanation, silent, proved, case.run_dir,
    )  # fmt: skip
