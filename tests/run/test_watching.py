"""Who watches a run hears findings while it goes, and changes nothing."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import torch

from repro.load.listener import LoadListener
from repro.run.options import RunOptions, Watch
from repro.run.run import run_scenario
from tests.small import larger, small_scenario


class Hearing(LoadListener):
    def __init__(self) -> None:
        self.counts: list[Mapping[str, int]] = []
        self.claims: list[str] = []

    def on_found(self, counts: Mapping[str, int], first_claim: str) -> None:
        self.counts.append(counts)
        self.claims.append(first_claim)


def test_a_watcher_hears_counts_that_grow_to_the_verdicts_and_the_run_stays_the_same(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    hearing, utc, scenario = Hearing(), datetime(2026, 12, 1, tzinfo=UTC), larger(small_scenario())
    watched = run_scenario(scenario, RunOptions(), root=tmp_path / "watched", utc=utc, watch=Watch(load=hearing))
    alone = run_scenario(scenario, RunOptions(), root=tmp_path / "alone", utc=utc)
    assert watched.verdict.fingerprint == alone.verdict.fingerprint
    ordering = [counts["ordering"] for counts in hearing.counts]
    assert len(ordering) >= 2 and ordering == sorted(ordering)
    assert ordering[-1] == watched.verdict.findings["ordering"]
    assert "nothing orders them" in hearing.claims[0] and {*hearing.claims} == {hearing.claims[0]}
