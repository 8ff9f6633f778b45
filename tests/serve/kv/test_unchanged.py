"""A read of a layer that only the step itself has written to is compared in part; the run is the same."""

from pathlib import Path

import pytest

from repro.schedule.schedule import Schedule
from repro.serve.kv.reads import StepReads
from tests.search.race import played
from tests.small import run_small, small_scenario


@pytest.mark.parametrize("drafts", [0, 2])
@pytest.mark.parametrize("picker", ["timed", "random"])
def test_a_run_is_the_same_when_every_read_is_compared_whole(
    picker: str, drafts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario, schedule = small_scenario(drafts=drafts), Schedule(picker, 3)  # type: ignore[arg-type]
    in_part = run_small(tmp_path, scenario, schedule=schedule)
    monkeypatch.setattr(StepReads, "_only_adds_to", lambda *_: False)
    whole = run_small(tmp_path, scenario, schedule=schedule)
    assert in_part.verdict.fingerprint == whole.verdict.fingerprint


def test_wrong_and_tainted_rows_are_reported_as_when_every_read_is_compared_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    showing = Schedule("pct2", 8, 1, 300)
    in_part = played(tmp_path, showing)
    monkeypatch.setattr(StepReads, "_only_adds_to", lambda *_: False)
    whole = played(tmp_path, showing)
    assert any("foreign bytes" in each for each in whole.signatures)
    assert in_part.fingerprint == whole.fingerprint
