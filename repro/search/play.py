"""One schedule in a process of the pool: plays it and says what it came to, in what can be sent back."""

import multiprocessing
import shutil
import signal
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import torch

from repro.base.errors import ReproError, UsageError
from repro.base.probe import Event, RequestEvent
from repro.run.run import RunOptions, run_scenario
from repro.scenario.schema import Scenario
from repro.schedule.schedule import deviations_of
from repro.schedule.strategies import Overtaking, weights_of
from repro.search.orders import Orders


class Found(msgspec.Struct, frozen=True):
    """One finding of a run, the first of its signature."""

    signature: str
    layer: str
    detector: str
    claim: str
    evidence: dict[str, Any] = {}


class Played(msgspec.Struct, frozen=True):
    """What a schedule came to; `error` says why it came to nothing."""

    options: RunOptions
    word: str = "failed"
    found: tuple[Found, ...] = ()
    orders: frozenset[str] = frozenset()
    operations: tuple[str, ...] = ()  # of those orders, the rarest first
    suspects: tuple[str, ...] = ()  # operations that nothing orders, those first that were enqueued first
    steps: int = 0
    weights: tuple[int, ...] = ()
    deviations: tuple[tuple[int, int], ...] = ()
    overtakings: tuple[Overtaking, ...] = ()
    requests: int = 0
    prompt_tokens: int = 0  # of the longest prompt
    token: str = ""
    fingerprint: str = ""
    run_dir: str = ""
    error: str = ""

    @property
    def signatures(self) -> frozenset[str]:
        """Return what was found, by cause."""
        return frozenset(each.signature for each in self.found)


def chief(found: Sequence[Found], scenario: Scenario) -> Found:
    """Return what a run has found of what the scenario expects, in the order of its detectors; else the first."""
    expected = scenario.expect.detectors
    return min(found, key=lambda each: expected.index(each.detector) if each.detector in expected else len(expected))


class _Longest:
    """How long the longest prompt of a run was."""

    prompt_tokens = 0

    def feed(self, event: Event) -> None:
        if isinstance(event, RequestEvent) and event.what == "received":
            self.prompt_tokens = max(self.prompt_tokens, int(event.detail["prompt_tokens"]))


class _Said(msgspec.Struct):
    """The part of a verdict that a search needs."""

    verdict: str
    requests: int
    token: str
    fingerprint: str
    run_dir: str


def players(workers: int, *, runs_each: int | None = None) -> ProcessPoolExecutor:
    """Return the pool that `play` runs in; with `runs_each`, a process ends after so many."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, context, initializer=_settle, max_tasks_per_child=runs_each)


def _settle() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the hunter's: runs under way are played to their end
    torch.set_num_threads(1)


def play(scenario: Scenario, options: RunOptions, root: Path) -> Played:
    """Run a schedule. Raises UsageError for a scenario that makes no sense; other errors are an outcome."""
    orders, longest = Orders(), _Longest()
    try:
        outcome = run_scenario(
            scenario, options, root=root, utc=datetime.now(UTC), listeners=(orders.feed, longest.feed)
        )
    except UsageError:
        raise
    except ReproError as error:
        return Played(options, error=f"{type(error).__name__}: {error}", run_dir=error.run_dir)
    said = msgspec.convert(outcome.verdict, _Said)
    first: dict[str, Found] = {}
    for finding in outcome.findings:
        first.setdefault(
            finding.signature,
            Found(finding.signature, finding.layer, finding.detector, finding.claim, finding.evidence),
        )
    explored = outcome.explored
    assert explored is not None
    return Played(
        options,
        said.verdict,
        tuple(first.values()),
        frozenset(orders.seen),
        orders.operations,
        suspects(first.values()),
        len(explored.tape),
        weights_of(explored.contended),
        deviations_of(explored.tape),
        tuple(explored.overtakings),
        min(said.requests, options.overrides.requests or said.requests),  # the one that ended the load was never sent
        longest.prompt_tokens,
        said.token,
        said.fingerprint,
        said.run_dir,
    )


def suspects(found: Iterable[Found]) -> tuple[str, ...]:
    """Return the operations of the races that happens-before has told, whatever their order did to the bytes."""
    earlier: list[str] = []
    later: list[str] = []
    for each in found:
        if each.layer != "ordering":
            continue
        ends = [end for key in ("first", "second") if "name" in (end := each.evidence.get(key, {}))]
        ends.sort(key=lambda end: float(end["enqueued_us"]))
        names = [end["name"] for end in ends]
        if "op" in each.evidence:  # ownership names one operation
            names.append(each.evidence["op"])
        earlier += names[:1]
        later += names[1:]
    return tuple(dict.fromkeys([*earlier, *later]))


def proves(scenario: Scenario, played: Played, root: Path) -> bool:
    """Return whether a new process comes to the same run."""
    with players(1, runs_each=1) as pool:
        again = pool.submit(play, scenario, played.options, root).result()
    discard(again)
    return again.fingerprint == played.fingerprint


def discard(played: Played) -> None:
    """Remove the folder of a run that nobody needs."""
    if played.run_dir:
        shutil.rmtree(played.run_dir, ignore_errors=True)
