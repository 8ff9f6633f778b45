"""What the event detectors cost: `python -m tests.bench.ordering [--tensors] [--schedules N]`.

Events a second: synthetic ones, decode steps of 16 requests with 48 pages each, a layer's store, index read and attend,
and beside them a load-back that copies 16 pages at a time. Everything is ordered; the cost is the cost of silence.

Shares of run time: real runs of hicache_early_read with its defect, as `repro run` does them, on one thread, with a
stopwatch of processor time on what the detectors are shown; of all processor time of the run, oracle and report data
included. Light is the schedule that a hunt plays. `--tensors` adds the run with the model's arithmetic (minutes).

Schedules: light ones of a hunt, one after another in one process, from the scenario to the verdict.
"""

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from rich.table import Table

from detectors.pages.canary import CanaryDetector
from detectors.pages.ordering import OrderingDetector
from detectors.pages.ownership import OwnershipDetector
from detectors.pages.sets import Sample
from repro.base.probe import Access, Component, Edge, Event, HostSync, Op, PageSet
from repro.record.exercised import ExerciseMeter
from repro.run.options import RunOptions
from repro.run.run import run_scenario
from repro.scenario.overrides import light_load
from repro.scenario.schema import Scenario, find, parse
from repro.schedule.overrides import Overrides
from repro.schedule.schedule import Schedule
from repro.search.play import Trial, discard, play
from tests.bench.results import add_record, show
from tests.search.race import race_scenario

SCENARIO = "hicache_early_read"
EVERY = 16
HUNTED = (SCENARIO, "pd_reuse_before_drain")

REQUESTS = 16
PAGES = 48
LAYERS = 6
STEPS = 100
SETS_PER_STEP = REQUESTS  # sparse attention gathers other pages each time


def events() -> list[Event]:
    """Return the recorded events of the steps."""
    made: list[Event] = []
    for number in range(REQUESTS):
        made.append(PageSet(number + 1, (number * PAGES, (number + 1) * PAGES)))
    named, compute, load, host = REQUESTS, 0, 0, 0
    names = tuple(f"r{number}" for number in range(REQUESTS))

    def op(stream: str, index: int, name: str, layer: int, accesses: list[Access], after: tuple[Edge, ...] = ()) -> Op:
        return Op(stream, index, name, layer, 1, "x.py:1", host, 0.0, 1.0, 2.0, after, tuple(accesses), names)

    def touch(write: bool, component: Component, layer: int, first: int) -> list[Access]:
        return [Access(write, "device", component, layer, first + n, names[n]) for n in range(REQUESTS)]

    for _ in range(STEPS):
        for number in range(SETS_PER_STEP):  # every second page of each request
            starts = range(number * PAGES, (number + 1) * PAGES, 2)
            made.append(PageSet(named + number + 1, tuple(bound for page in starts for bound in (page, page + 1))))
        gathered, named = named + 1, named + SETS_PER_STEP
        for layer in range(LAYERS):
            copy = [Access(True, "device", component, layer, 1, "") for component in ("latent", "index")]
            used = (Edge(("compute", compute - 1), "last use"),) if compute else ()
            made.append(op("load", load, "loadback.copy_layer", layer, copy, used))
            done = (Edge(("load", load), "loaded"),)
            store = touch(True, "latent", layer, 1) + touch(True, "index", layer, 1)
            made.append(op("compute", compute, "forward.store", layer, store, done))
            made.append(op("compute", compute + 1, "forward.index", layer, touch(False, "index", layer, 1)))
            made.append(op("compute", compute + 2, "forward.attend", layer, touch(False, "latent", layer, gathered)))
            made.append(op("compute", compute + 3, "forward.feed_forward", layer, []))
            load, compute = load + 1, compute + 4
        host += 1
        made.append(HostSync(host, ("compute", compute - 1), "samples", 3.0))
    return made


def measured(feed: Callable[[Event], None], stream: list[Event]) -> tuple[float, dict[str, float]]:
    """Return seconds for all events, and microseconds per operation by name."""
    seconds: dict[str, float] = {}
    counts: dict[str, int] = {}
    started = time.thread_time()
    for event in stream:
        before = time.thread_time()
        feed(event)
        name = event.name if isinstance(event, Op) else type(event).__name__
        seconds[name] = seconds.get(name, 0.0) + time.thread_time() - before
        counts[name] = counts.get(name, 0) + 1
    total = time.thread_time() - started
    return total, {name: seconds[name] / counts[name] * 1e6 for name in seconds}


def rates() -> Table:
    """Return events a second, and microseconds by operation."""
    stream = events()
    ops = sum(isinstance(event, Op) for event in stream)
    title = f"{len(stream)} events, {ops} operations, {REQUESTS} requests x {PAGES} pages, {LAYERS} layers"
    table = Table("detector", "events/s", "us an operation", "us by operation", title=title)
    for label, detector in (
        ("ordering", OrderingDetector()),
        (f"ordering, 1 page in {EVERY}", OrderingDetector(Sample(EVERY))),
        ("ownership", OwnershipDetector()),
        ("canary", CanaryDetector()),
        ("what was exercised", ExerciseMeter()),
    ):
        total, by_name = measured(detector.feed, stream)
        each = ", ".join(f"{name.rpartition('.')[2]} {us:.1f}" for name, us in by_name.items())
        table.add_row(label, f"{len(stream) / total:,.0f}", f"{total / ops * 1e6:.1f}", each)
    return table


def shares(scenario: Scenario, overrides: Overrides) -> tuple[float, int, Counter[str]]:
    """Run a scenario; return its seconds of processor time, its events, and of those seconds each detector's."""
    seconds: Counter[str] = Counter()
    shown = 0

    def feed_all(detector: Any, fed: Sequence[Event]) -> None:
        nonlocal shown
        started = time.process_time()
        for event in fed:
            detector.feed(event)
        seconds[type(detector).__name__] += time.process_time() - started
        shown += len(fed) * isinstance(detector, OrderingDetector)

    with tempfile.TemporaryDirectory() as root, mock.patch("repro.run.recorder.feed_all", feed_all):
        started = time.process_time()
        run_scenario(scenario, RunOptions(overrides=overrides), root=Path(root), utc=datetime.now(UTC))
        return time.process_time() - started, shown, seconds


def shares_of_runs(*, tensors: bool) -> Table:
    """Return what part of real runs is the detectors'."""
    whole = find(SCENARIO)
    sampled = parse(f"{whole.source}\n[detect]\npages_sampled = {EVERY}\n", SCENARIO, SCENARIO)
    detectors = (OrderingDetector, OwnershipDetector, CanaryDetector, ExerciseMeter)
    table = Table("run", "pages", "seconds", "events", *(each.__name__ for each in detectors), title=SCENARIO)
    kinds = {"light, stamps": light_load(whole, stamps=True), "stamps": Overrides(stamps=True)}
    for label, overrides in (kinds | ({"tensors": Overrides()} if tensors else {})).items():
        for pages, scenario in (("all", whole), (f"1 in {EVERY}", sampled)):
            total, shown, seconds = shares(scenario, overrides)
            parts = [f"{seconds[each.__name__] / total:.1%}" for each in detectors]
            table.add_row(label, pages, f"{total:.1f}", f"{shown:,}", *parts)
    return table


def schedules(number: int) -> Table:
    """Return how many schedules a core plays in a second."""
    table = Table("light schedules, stamps, random walk", "requests", "a second and core")
    for scenario in (race_scenario(), *map(find, HUNTED)):
        overrides, requests = light_load(scenario, stamps=True), 0
        with tempfile.TemporaryDirectory() as root:
            started = time.process_time()
            for seed in range(number):
                played = play(Trial(scenario, RunOptions(overrides=overrides, schedule=Schedule("random", seed)), root))
                requests += played.requests
                discard(played)
            spent = time.process_time() - started
        table.add_row(scenario.name, f"{requests / number:.0f}", f"{number / spent:.2f}")
    return table


def main() -> None:
    """Parse the command line, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tensors", action="store_true", help="also the run with tensors, twice: minutes")
    parser.add_argument("--schedules", type=int, default=10, help="of each scenario")
    add_record(parser)
    given = parser.parse_args()
    torch.set_num_threads(1)
    show(given, rates(), shares_of_runs(tensors=given.tensors), schedules(given.schedules))


if __name__ == "__main__":
    main()
