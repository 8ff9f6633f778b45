"""A whole run with drafts: the harness judges it as it judges one without."""

from pathlib import Path

import pytest

from repro.record.counts import Compared
from repro.schedule.schedule import Schedule
from tests.small import run_small, small_scenario


def test_the_control_is_clean_and_the_oracle_agrees_with_drafted_answers(tmp_path: Path) -> None:
    outcome = run_small(tmp_path, small_scenario("tensors", drafts=3), control=True, oracle_sample=6)
    assert outcome.verdict.word == "clean", outcome.verdict
    assert outcome.verdict.oracle == Compared(compared=6, sample=6)


@pytest.mark.parametrize("picker", ["timed", "random"])
def test_the_early_read_is_found_and_the_same_seed_gives_the_same_run(picker: str, tmp_path: Path) -> None:
    first, second = (run_small(tmp_path, small_scenario(drafts=3), schedule=Schedule(picker, 7)) for _ in range(2))
    assert first.verdict.word == "anomaly"
    assert first.fingerprint == second.fingerprint
