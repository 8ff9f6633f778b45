"""A Ray cluster of two nodes on this machine comes to the night of one process, with a node killed in the middle."""

import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from reports.night.night import Night
from repro.base.errors import UsageError
from repro.fleet.nightly.execute import runs_on
from repro.fleet.nightly.job import Job, JobResult
from repro.fleet.nightly.journal import Journal
from repro.fleet.nightly.night import RUNS, Runs, night_id, run_night
from repro.fleet.nightly.plan import Plan, Target
from repro.fleet.nightly.remote import runs_on_cluster
from repro.pool.cluster import RayPool
from repro.pool.local import LocalPool
from tests.fleet.nightly.builders import make_suite

ray = pytest.importorskip("ray", reason="the extra cluster is not installed")
from ray.cluster_utils import Cluster  # noqa: E402


class Disturbed:
    """Runs during which something is done after the first result."""

    def __init__(self, runs: Runs, disturb: "itertools.count[int]", action: object) -> None:
        self._runs = runs
        self._count = disturb
        self._action = action

    def __call__(self, jobs: Iterator[Job]) -> Iterator[JobResult]:
        for result in self._runs(jobs):
            if next(self._count) == 0:
                self._action()  # type: ignore[operator]
            yield result


def night_on(runs: Runs, plan: Plan, folder: Path) -> Night:
    journal = Journal.create(folder, night_id(plan.suite, plan.target, 0, "", "20261125T020000Z"))
    try:
        return run_night(plan, journal, runs, folder=folder, clock_s=lambda: 0.0, done=lambda result: None)
    finally:
        journal.close()


def test_two_nodes_with_one_killed_come_to_the_verdict_of_one_process(tmp_path: Path) -> None:
    plan = Plan(make_suite(tmp_path, seeds=3), Target(), 0)
    with LocalPool(1) as local:
        one = night_on(partial(runs_on, local, tmp_path / "one" / RUNS), plan, tmp_path / "one")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second = cluster.add_node(num_cpus=1)
    try:
        with RayPool(cluster.address, 1) as pool:
            runs = partial(runs_on_cluster, pool, tmp_path / "two" / RUNS)
            disturbed = Disturbed(runs, itertools.count(), lambda: cluster.remove_node(second, allow_graceful=False))
            two = night_on(disturbed, plan, tmp_path / "two")
    finally:
        cluster.shutdown()
    assert (two.digest, two.verdict, two.runs) == (one.digest, one.verdict, one.runs) == (one.digest, "clean", 6)
    kept = sorted(path.parent.name for path in (tmp_path / "two" / RUNS).glob("*/*/findings.jsonl"))
    assert len(kept) == 3  # the evidence came back from the nodes


def test_an_address_where_no_cluster_is_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="no cluster there.*ray start --head"):
        RayPool("127.0.0.1:1", 1)
