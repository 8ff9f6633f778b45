"""Runs in which every fault of some planes is armed, at a size that a test can afford."""

from datetime import UTC, datetime
from pathlib import Path

import torch
from msgspec import UNSET
from msgspec.structs import replace

from repro.fault import points
from repro.fault.kinds import KINDS
from repro.fault.plan import Fault, When
from repro.fault.points import names_of
from repro.record.verdict import FaultOutcome
from repro.run.options import RunOptions
from repro.run.outcome import Outcome
from repro.run.run import run_scenario
from repro.scenario.schema import find
from repro.search.mutate.study import in_stamps

NUMBERS = {
    "delay": 3000.0,
    "stall": 2e6,
    "slow": 20_000.0,
    "burst": 100_000.0,
    "abort": 200_000.0,
    "order": 1e6,
    "evict": 1024,
}
POINTS = {name: names_of(point.kinds) for name, point in points.POINTS.items()}
CORRUPTING = names_of(points.CORRUPTING)
OFTEN = {"loadback": 0.2, "writeback": 0.2, "transfer": 0.02, "pd": 0.2, "client": 0.3, "storage": 0.1}
PER_STEP = ("upload", "embed", "sample", "download", "propose", "tokens", "evict")
SELDOM, NOW_AND_THEN = 0.02, 0.1  # of hits of a point that every layer of every step comes by, or every step


def some(point: str, kind: str, *, probability: float | None = None, times: int | None = None) -> Fault:
    """Return a fault that fires now and then, with the numbers that its kind needs."""
    plane = "client" if point.endswith("slot") else point.partition(".")[0]  # as seldom hit: once a request
    by_default = OFTEN.get(plane, NOW_AND_THEN if point.endswith(PER_STEP) else SELDOM)
    often = by_default if probability is None else probability
    number = (NUMBERS[kind],) if kind in NUMBERS else ()
    return Fault(point, KINDS[kind](*number), When(often, times=times))


def planned(*points: str, without: tuple[str, ...] = ("kill",)) -> tuple[Fault, ...]:
    """Return one fault of every kind at each point that begins so."""
    found = [(point, kind) for point, kinds in POINTS.items() if point.startswith(points) for kind in kinds]
    return tuple(some(point, kind) for point, kind in found if kind not in without)


def run_with(
    faults: tuple[Fault, ...], workload: str, root: Path, *, seed: int = 3, control: bool = False, **load: object
) -> Outcome:
    """Run a generic workload in stamps with these faults instead of its own, and less load."""
    torch.set_num_threads(1)
    plain = in_stamps(find(workload))
    smaller = {"sessions": 6, "concurrency": 6, "turns": 3, "answer_tokens_max": 24} | load
    scenario = replace(plain, load=replace(plain.load, **smaller), faults=faults)
    options = RunOptions(seed, control=control, oracle_sample=0)
    return run_scenario(scenario, options, root=root, utc=datetime(2026, 11, 25, tzinfo=UTC))


def fired(outcome: Outcome, fault: str) -> int:
    """Return how often a fault of a run fired."""
    return outcome.verdict.faults[fault].fired


def corruptions_of(outcome: Outcome) -> dict[str, FaultOutcome]:
    """Return what became of the faults that changed bytes."""
    return {name: each for name, each in outcome.verdict.faults.items() if each.changed is not UNSET}
