"""The mutation study: removes each order-holding thing of the stack, and asks whether that is noticed.

Each mutant runs under the workloads until a detector, or an assertion of the stack, notices it. A mutant that is not
noticed is redundant when other edges imply it, or harmless when all accesses to pages stay ordered; the
happens-before of an unchanged run proves both. Otherwise it is a hole.
"""

import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Literal

import msgspec
from msgspec.structs import replace

from repro.base.errors import HarnessError, ReproError
from repro.base.probe import AnyEvent, Event, unrolled
from repro.base.verdict_word import VerdictWord
from repro.fault.defects import DEFECTS
from repro.load.listener import LoadListener
from repro.pool.call import alive
from repro.pool.local import DAY_S, LocalPool
from repro.record.view import open_run
from repro.run.options import RunOptions, Watch
from repro.run.run import run_scenario
from repro.scenario.schema import Scenario
from repro.search.mutate.redundant import implied_by, orders_no_pages
from repro.search.mutate.sites import (
    Altered,
    Brought,
    Mutant,
    Sites,
    applied,
    does_nothing,
    is_trap,
    noted,
    static_mutants,
    watched,
)
from repro.serve.guards import Guards

Outcome = Literal["caught", "redundant", "survived", "undecided"]
# A mutant may loop for ever. Processor time shows that on a machine of any speed; a run that stands still for longer
# than RUN_TIMEOUT_S may be the machine's fault, so it counts as undecided.
TIMES_MAX = 8  # A mutant's processor time, over the unchanged workload's
PROCESSOR_S_MIN = 8.0
RUN_TIMEOUT_S = 1800.0
STOP_S = 20.0  # time that running workloads get to end after a Ctrl-C
AGAIN_S = 1.0  # the signal is repeated: the event loop may swallow the exception
NO_END = f"no end within {RUN_TIMEOUT_S:.0f} s"
CIRCLES = f"never ends: {TIMES_MAX} times the processor time of the workload"
FIRST_LINE_MAX = 100  # characters of an assertion's message that a row quotes
_UNCHANGED: dict[tuple[str, str, int], list[AnyEvent]] = {}  # events of unchanged runs, one cache a worker


class Watching(msgspec.Struct, frozen=True):
    """A run of an unchanged workload."""

    workload: Scenario
    seed: int


class Examined(msgspec.Struct, frozen=True):
    """A mutant with all that its examination needs; `reached` has the sites that each workload reaches, by name."""

    mutant: Mutant
    workloads: tuple[Scenario, ...]
    seeds: tuple[int, ...]
    reached: dict[str, Sites]


class Row(msgspec.Struct, frozen=True):
    """A mutant's fate. `by`: the detector that caught it, the edges that imply it, or why it is harmless."""

    kind: str
    name: str
    outcome: Outcome
    by: str
    runs: int  # how many it took to find out


class Examination(msgspec.Struct, frozen=True):
    """All rows, and the workloads that were not clean before anything was removed."""

    rows: tuple[Row, ...]
    unclean: tuple[str, ...] = ()
    cut: bool = False  # Ctrl-C ended it

    def count(self, outcome: Outcome) -> int:
        """Return how many mutants have this outcome."""
        return sum(row.outcome == outcome for row in self.rows)

    @property
    def score(self) -> float:
        """Return the share of the mutants that are caught or redundant."""
        return (self.count("caught") + self.count("redundant")) / max(1, len(self.rows))


def examine(
    workloads: Sequence[Scenario], seeds: Sequence[int], *, workers: int, done: Callable[[Row, int, int], None]
) -> Examination:
    """Run every mutant under every workload that reaches it, with every seed, until it is noticed.

    `done(row, number, of)` is called after each mutant.
    The workloads run in stamps, and their floors don't count. A Ctrl-C ends it; what was done is returned.
    """
    plain = [in_stamps(workload) for workload in workloads]
    rows: list[Row] = []
    with LocalPool(workers, timeout_s=DAY_S, calls_each=None) as pool:  # runs bound their own time
        runs = [Watching(workload, seed) for workload in plain for seed in seeds]
        reached: dict[str, Sites] = {workload.name: Sites() for workload in plain}
        unclean = []
        for run, watched_run in pool.results(watch, iter(runs)):
            sites, complaint = alive(watched_run)
            reached[run.workload.name].add(sites)
            unclean += [complaint] if complaint else []
        if unclean:
            return Examination((), tuple(sorted(unclean)))
        mutants = sorted(set().union(static_mutants(), *(sites.mutants for sites in reached.values())))
        examined = (Examined(mutant, tuple(plain), tuple(seeds), reached) for mutant in mutants)
        try:
            for _, row in pool.results(fate_of, examined):
                rows.append(alive(row))
                done(rows[-1], len(rows), len(mutants))
        except KeyboardInterrupt:
            pool.interrupt(STOP_S)
    return Examination(tuple(sorted(rows, key=lambda row: (row.kind, row.name))), cut=len(rows) < len(mutants))


def in_stamps(workload: Scenario) -> Scenario:
    """Return a workload for mutation: in stamps, and without floors."""
    return replace(workload, config=replace(workload.config, numerics="stamps"), exercise={})


def watch(run: Watching) -> tuple[Sites, str]:
    """Return the sites that a workload reaches, and the complaint about its run; "" for none, as it must be."""
    workload, seed = run.workload, run.seed
    sites = Sites()
    started_s = time.process_time()
    complaint = _noticed(workload, seed, watched(sites))
    sites.took_s = time.process_time() - started_s
    return sites, f"{workload.name}, seed {seed}: {complaint}" if complaint else ""


def fate_of(examined: Examined) -> Row:
    """Return the row of a mutant; called in a worker."""
    return fate(examined.mutant, examined.workloads, examined.seeds, examined.reached)


def fate(mutant: Mutant, workloads: Sequence[Scenario], seeds: Sequence[int], reached: dict[str, Sites]) -> Row:
    """Return the row of a mutant; `reached` has the sites that each workload reaches, by name."""
    if mutant.kind == "guard" and does_nothing(Guards()[mutant.name]):
        by = "does nothing by itself; a setting puts another in its place"
        return Row(mutant.kind, mutant.name, "redundant", by, 0)
    if mutant.kind == "guard" and is_trap(Guards()[mutant.name]):
        return _fate_of_trap(mutant, workloads, seeds, reached)
    runs, reaching = 0, [workload for workload in workloads if mutant in reached[workload.name].mutants]
    for seed in seeds:
        for workload in reaching:
            runs += 1
            if noticed := _noticed(workload, seed, applied(mutant), reached[workload.name].took_s):
                outcome: Outcome = "undecided" if noticed == NO_END else "caught"
                return Row(mutant.kind, mutant.name, outcome, noticed, runs)
    if not reaching:
        return Row(mutant.kind, mutant.name, "survived", "no workload comes by it", 0)
    if by := _redundant(mutant, reaching, seeds[0], reached):
        return Row(mutant.kind, mutant.name, "redundant", by, runs)
    return Row(mutant.kind, mutant.name, "survived", _unneeded(mutant, reaching, seeds[0], reached), runs)


def _fate_of_trap(trap: Mutant, workloads: Sequence[Scenario], seeds: Sequence[int], reached: dict[str, Sites]) -> Row:
    """Return the row of a guard that only raises: is the bug that it traps found without the trap too?

    The bank's defects that leave it out with another guard run once with the trap in place and once without.
    """
    runs = 0
    for name, in_place in _springing(trap):
        for seed in seeds:
            for workload in workloads:
                usual_s = reached[workload.name].took_s
                runs += 1
                if not _springs(trap, in_place, workload, seed, usual_s):
                    continue
                runs += 1
                noticed = _noticed(replace(workload, defects=(name,)), seed, Altered(), usual_s)
                if noticed not in ("", NO_END):
                    by = f"only raises; {name}, which springs it, is caught without it by {noticed}"
                    return Row(trap.kind, trap.name, "redundant", by, runs)
    return Row(trap.kind, trap.name, "survived", "only raises, and nothing springs it", runs)


def _springing(trap: Mutant) -> Iterator[tuple[str, Guards]]:
    """Yield each defect that leaves out a trap and other guards, with its guards and the trap in place."""
    correct = Guards()
    for defect in DEFECTS.values():
        guards = defect.apply(correct)
        in_place = guards.replaced(**{trap.name: correct[trap.name]})
        if guards != in_place != correct:
            yield defect.name, in_place


def _springs(trap: Mutant, guards: Guards, workload: Scenario, seed: int, usual_s: float) -> bool:
    """Run once with these guards; return whether the trap was called."""
    sprung = Sites()
    noting = guards.replaced(**{trap.name: noted(guards[trap.name], trap, sprung)})
    _noticed(workload, seed, Altered(noting), usual_s)
    return trap in sprung.mutants


def _redundant(mutant: Mutant, workloads: Sequence[Scenario], seed: int, reached: dict[str, Sites]) -> str:
    """Return in words which edges imply all that a mutant removes; "" when none do, or when it is unknown."""
    whys, brought = _taken_by(mutant, workloads, reached)
    learnt_of = {name for workload in workloads for name in reached[workload.name].learnt_of}
    if mutant.kind == "record" and not whys and mutant.name not in learnt_of:
        return "nobody asks for it"
    if not whys:
        return ""
    logs = zip(brought, _logs(workloads, seed), strict=True)
    implying = [implied_by(events, whys, edges) for edges, events in logs]
    if any(each is None for each in implying):
        return ""
    names = sorted({name for each in implying for name in each or ()})
    never = "never had to wait, and is " if mutant.kind == "acknowledge" else ""
    return f"{never}implied by: {'; '.join(names) or 'several at once, none of which is needed'}"


def _unneeded(mutant: Mutant, workloads: Sequence[Scenario], seed: int, reached: dict[str, Sites]) -> str:
    """Return in words why no detector noticed a mutant that no edge implies; "" when that is unknown."""
    whys, brought = _taken_by(mutant, workloads, reached)
    logs = zip(brought, _logs(workloads, seed), strict=True)
    if not whys or not all(orders_no_pages(events, whys, edges) for edges, events in logs):
        return ""
    return "for pace alone: without it no two accesses to a page lose their order"


def _taken_by(
    mutant: Mutant, workloads: Sequence[Scenario], reached: dict[str, Sites]
) -> tuple[frozenset[str], list[set[Brought] | None]]:
    """Return the waits that a mutant removes edges from, and those edges by workload; None for all edges."""
    sites = Sites()
    for workload in workloads:
        sites.add(reached[workload.name])
    whys = _whys_of(mutant, sites)
    if mutant.kind != "record":
        return whys, [None] * len(workloads)
    return whys, [reached[workload.name].edges_of.get(mutant.name, set()) for workload in workloads]


def _whys_of(mutant: Mutant, sites: Sites) -> frozenset[str]:
    """Return the waits and synchronisations that order nothing under a mutant."""
    match mutant.kind:
        case "record" if mutant.name not in sites.learnt_of:
            return frozenset(sites.waits_for.get(mutant.name, ()))
        case "guard":
            return frozenset(sites.waits_of.get(mutant.name, ()))
        case "wait" | "synchronise":
            return frozenset((mutant.name,))
        case "acknowledge" if mutant.name not in sites.refused:
            return frozenset(sites.learnt_of.get(mutant.name, ()))
        case _:
            return frozenset()


def _noticed(workload: Scenario, seed: int, altered: Altered, usual_s: float | None = None) -> str:
    """Run once and return what noticed something, "" for nothing.

    `usual_s` is the processor time of the unchanged workload, None where it is not known yet.
    """
    bound_s = None if usual_s is None else max(PROCESSOR_S_MIN, TIMES_MAX * usual_s)
    complaint = ""
    with tempfile.TemporaryDirectory(prefix="mutate") as root, _bounded(bound_s) as over:
        complaint = _complaint_of(workload, seed, altered, Path(root))
    return over[0] if over else complaint


def _complaint_of(workload: Scenario, seed: int, altered: Altered, root: Path) -> str:
    """Run until the stack or a detector complains; return the complaint, "" for none."""
    try:
        outcome = run_scenario(
            workload, RunOptions(seed, oracle_sample=0), root=root, utc=datetime.now(UTC),
            watch=Watch(load=_FirstFinding()), guards=altered.guards, build=altered.build,
        )  # fmt: skip
    except _NoticedError as noticed:
        return str(noticed)
    except (HarnessError, AssertionError) as error:
        cause = error.__cause__ or error
        return f"the stack itself: {type(cause).__name__} {cause}".splitlines()[0][:FIRST_LINE_MAX]
    failed = outcome.verdict.word if outcome.verdict.word == VerdictWord.FAILED else ""
    return ", ".join(outcome.verdict.findings) or failed


class _NoticedError(ReproError):
    """Ends a run early; the message names the detectors that have found something."""


class _FirstFinding(LoadListener):
    """Ends a run as soon as a detector of events has found something."""

    def on_found(self, counts: Mapping[str, int], first_claim: str) -> None:
        """Raise _NoticedError."""
        raise _NoticedError(", ".join(counts))


def _logs(workloads: Sequence[Scenario], seed: int) -> Iterator[list[Event]]:
    """Yield the events of each unchanged workload's run."""
    for workload in workloads:
        key = workload.name, workload.source, seed
        if key not in _UNCHANGED:
            with tempfile.TemporaryDirectory(prefix="mutate") as root:
                options = RunOptions(seed, oracle_sample=0)
                outcome = run_scenario(workload, options, root=Path(root), utc=datetime.now(UTC))
                _UNCHANGED[key] = list(open_run(outcome.path).recorded())
        yield list(unrolled(_UNCHANGED[key]))


class _Over(Exception):
    """A run went on for too long."""


@contextmanager
def _bounded(processor_s: float | None) -> Iterator[list[str]]:
    """End a run that takes more processor time than this, or longer than RUN_TIMEOUT_S; the yielded list then says so.

    The run's own complaint does not count then: the stack may have swallowed the exception, and gone on.
    """
    over: list[str] = []
    armed = True

    def end(number: int, frame: FrameType | None) -> None:
        if armed:
            over.append(CIRCLES if number == signal.SIGPROF else NO_END)
            raise _Over

    limits = (
        (signal.SIGPROF, signal.ITIMER_PROF, processor_s or 0.0),  # a timer of 0 never goes off
        (signal.SIGALRM, signal.ITIMER_REAL, RUN_TIMEOUT_S),
    )
    before = [signal.signal(number, end) for number, _, _ in limits]
    try:
        for _, timer, bound_s in limits:
            signal.setitimer(timer, bound_s, AGAIN_S)
        yield over
    except _Over:
        pass
    finally:
        armed = False  # first: a timer that goes off in here must not keep the other from being stopped
        for (number, timer, _), handler in zip(limits, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)
