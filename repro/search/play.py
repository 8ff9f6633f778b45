"""One schedule of a scenario: plays it, perhaps in a worker, and returns what a search needs of the run.

Hunts, shrinking and their benches share it.
"""

import shutil
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from detectors.base import Finding, by_cause
from repro.base.errors import ReproError, UsageError
from repro.base.probe import Event, RequestEvent
from repro.pool.call import Died, Pool
from repro.pool.local import LocalPool
from repro.run.options import RunOptions, Watch
from repro.run.run import run_scenario
from repro.scenario.schema import Scenario
from repro.schedule.schedule import deviations_of
from repro.schedule.strategies import Overtaking, weights_of
from repro.search.orders import Orders


class Trial(msgspec.Struct, frozen=True):
    """A schedule to play."""

    scenario: Scenario
    options: RunOptions
    root: str  # the run's folder goes below it


class Played(msgspec.Struct, frozen=True):
    """What a trial came to: the verdict's word, what was found, and what a search learns from.

    One with an `error` has no verdict and found nothing.
    """

    options: RunOptions
    word: str = "failed"
    found: tuple[Finding, ...] = ()  # the first finding of each signature
    orders: frozenset[str] = frozenset()  # orders of accesses to a page, see `Orders`
    operations: tuple[str, ...] = ()  # the operations that these orders name, the rarest first
    suspects: tuple[str, ...] = ()  # operations that nothing orders, those first that were enqueued first
    steps: int = 0  # choices of the schedule
    weights: tuple[int, ...] = ()  # of the streams, for the strategy surw
    deviations: tuple[tuple[int, int], ...] = ()  # (step, contender that was taken there instead of the first)
    overtakings: tuple[Overtaking, ...] = ()
    requests: int = 0
    prompt_tokens: int = 0  # length of the longest prompt
    token: str = ""
    fingerprint: str = ""
    run_dir: str = ""
    error: str = ""

    @property
    def signatures(self) -> frozenset[str]:
        """Return what was found, by cause."""
        return frozenset(each.signature for each in self.found)


def play(trial: Trial) -> Played:
    """Run a trial. Raises UsageError for a scenario that makes no sense; other errors are an outcome."""
    options, orders, longest = trial.options, Orders(), _LongestPrompt()
    watch = Watch(listeners=(orders.feed, longest.feed))
    try:
        outcome = run_scenario(trial.scenario, options, root=Path(trial.root), utc=datetime.now(UTC), watch=watch)
    except UsageError:
        raise
    except ReproError as error:
        return Played(options, error=f"{type(error).__name__}: {error}", run_dir=error.run_dir)
    verdict, explored = outcome.verdict, outcome.explored
    assert explored is not None  # a server at a URL has none, and no search runs against one
    found = tuple(findings[0] for findings in by_cause(outcome.findings).values())
    # A load that was cut to so many requests counts the one that reached the limit too.
    sent = min(verdict.requests, options.overrides.requests or verdict.requests)
    return Played(
        options, verdict.word, found,
        orders=frozenset(orders.seen), operations=orders.operations, suspects=suspects(found),
        steps=len(explored.tape), weights=weights_of(explored.contended), deviations=deviations_of(explored.tape),
        overtakings=tuple(explored.overtakings), requests=sent, prompt_tokens=longest.prompt_tokens,
        token=verdict.token, fingerprint=verdict.fingerprint, run_dir=verdict.run_dir,
    )  # fmt: skip


class _LongestPrompt:
    """Hears the events of a run and knows its longest prompt."""

    def __init__(self) -> None:
        self.prompt_tokens = 0

    def feed(self, event: Event) -> None:
        if isinstance(event, RequestEvent) and event.what == "received":
            self.prompt_tokens = max(self.prompt_tokens, int(event.detail["prompt_tokens"]))


def suspects(found: Iterable[Finding]) -> tuple[str, ...]:
    """Return the operations that `ordering` has found unordered, the first of each race before the second ones."""
    earlier: list[str] = []
    later: list[str] = []
    for each in found:
        if each.layer != "ordering":
            continue
        names = [operation.name for operation in each.evidence.operations if operation.name]
        earlier += names[:1]
        later += names[1:]
    return tuple(dict.fromkeys([*earlier, *later]))


def comes_again(scenario: Scenario, played: Played, root: Path) -> bool | Died:
    """Return whether a new process makes the same run, by its fingerprint; Died if that process was killed."""
    with LocalPool(1) as pool:
        ((_, again),) = pool.results(play, iter([Trial(scenario, played.options, str(root))]))
    if isinstance(again, Died):
        return again
    discard(again)
    return again.fingerprint == played.fingerprint


def discard(played: Played) -> None:
    """Remove the run's folder."""
    if played.run_dir:
        shutil.rmtree(played.run_dir, ignore_errors=True)


def play_if_sensible(trial: Trial) -> Played:
    """Run a trial; a scenario that makes no sense is an outcome too."""
    try:
        return play(trial)
    except UsageError as error:
        return Played(trial.options, error=str(error))


def play_all(pool: Pool, trials: Sequence[Trial], function: Callable[[Trial], Played]) -> list[Played]:
    """Play trials at once and return what they came to, in their order; a killed worker is an error of its trial."""
    results = {id(trial): result for trial, result in pool.results(function, iter(trials))}
    ended = [(trial, results[id(trial)]) for trial in trials]
    return [Played(trial.options, error=killed(each)) if isinstance(each, Died) else each for trial, each in ended]


def killed(died: Died) -> str:
    """Return in words that a worker died in the middle of a trial."""
    return f"a process of the search was killed ({died.why}; out of memory?); fewer --workers need less"


def chief(found: Sequence[Finding], scenario: Scenario) -> Finding:
    """Return the finding to follow: by the detector that the scenario expects first, else the first of all."""
    expected = scenario.expect.detectors
    return min(found, key=lambda each: expected.index(each.detector) if each.detector in expected else len(expected))
