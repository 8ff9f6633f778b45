"""Corrupting faults: every kind strikes in every place, who reads notices, and the control has none."""

from pathlib import Path

import pytest

from repro.fault.points import PLACES
from repro.record.view import open_run
from repro.run.outcome import Outcome
from repro.serve.kv.reads import StepReads
from tests.fault.builders import CORRUPTING, corruptions_of, fired, planned, run_with, some

OFTEN = {"memory.cached": 0.5, "memory.host": 0.4, "memory.in_flight": 0.05}


def strike(place: str, root: Path, *, control: bool = False) -> Outcome:
    """Run with faults of every kind in one place, and pressure that moves pages to the host and back."""
    faults = tuple(some(place, kind, probability=OFTEN.get(place, 0.15)) for kind in CORRUPTING)
    return run_with((*planned("memory.evict"), *faults), "generic_hicache", root, control=control)


@pytest.fixture(scope="module")
def struck(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    return {place: strike(place, tmp_path_factory.mktemp("struck")) for place in PLACES}


@pytest.mark.parametrize("place", PLACES)
def test_every_kind_changes_bytes_and_whoever_reads_them_notices(place: str, struck: dict[str, Outcome]) -> None:
    outcome = struck[place]
    for kind in CORRUPTING:
        each = corruptions_of(outcome)[f"{place}.{kind}"]
        assert 0 < each.changed <= fired(outcome, f"{place}.{kind}")
        assert each.detected == each.read
    assert sum(each.read for each in corruptions_of(outcome).values()) > 5
    assert outcome.verdict.word == "anomaly" and {finding.detector for finding in outcome.findings} == {"canary"}


def test_a_control_drops_them_and_keeps_the_legal_ones(tmp_path: Path) -> None:
    outcome = strike("memory.in_use", tmp_path, control=True)
    assert list(outcome.verdict.faults) == ["memory.evict.evict"]
    assert outcome.findings == () and not corruptions_of(outcome)


def test_what_is_read_and_not_noticed_is_told_from_what_is_never_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StepReads, "_verify", lambda *_: None)
    outcome = strike("memory.in_use", tmp_path)
    for each in corruptions_of(outcome).values():
        assert each.detected == 0 < each.read <= each.changed
    assert outcome.findings == ()


def test_the_same_seed_changes_the_same_bytes(tmp_path: Path, struck: dict[str, Outcome]) -> None:
    one, two = struck["memory.host"], strike("memory.host", tmp_path)
    assert one.fingerprint == two.fingerprint and corruptions_of(one) == corruptions_of(two)


def test_a_change_stands_in_the_log_with_tier_component_layer_and_page(struck: dict[str, Outcome]) -> None:
    outcome = struck["memory.draft"]
    events = [event for event in open_run(outcome.path).events() if getattr(event, "corrupted", ())]
    assert len(events) == sum(each.changed for each in corruptions_of(outcome).values())
    for event in events:
        for each in event.corrupted:
            assert each.tier == "device" and each.layer == 6 and each.rows > 0
        assert len(event.corrupted) == (2 if event.name.endswith(("swap", "misdirect")) else 1)
