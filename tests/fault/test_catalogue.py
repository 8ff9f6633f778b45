"""Every legal fault of the catalogue fires, and a correct stack survives it without a wrong byte."""

from pathlib import Path

import pytest

from repro.base.errors import HarnessError
from repro.fault.kinds import KINDS
from repro.fault.points import PLACES, PLANES, catalogue
from repro.run.outcome import Outcome
from tests.fault.builders import CORRUPTING, POINTS, fired, planned, run_with, some

ENGINE = ("loadback", "writeback", "forward", "spec", "memory.evict", "client")
WORKLOADS = {
    "generic_hicache": ENGINE,
    "generic_pd": ("transfer", "pd"),
    "generic_layersplit": ("split",),
    "generic_storage": ("storage",),
}
LOADS = {"generic_storage": {"sessions": 14, "concurrency": 14}}  # fewer fit into the host tier
KILLS = {"pd.prefill_worker.kill", "split.rank.kill"}
LEGAL = {each.name: each.plane for each in catalogue() if each.legal}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """Return a run of each workload under all of its legal faults."""
    root = tmp_path_factory.mktemp("legal")
    return {
        workload: run_with(planned(*points), workload, root, **LOADS.get(workload, {}))
        for workload, points in WORKLOADS.items()
    }


def test_every_point_and_kind_is_in_words() -> None:
    assert set(KINDS) == {kind for kinds in POINTS.values() for kind in kinds}
    assert {each.plane for each in catalogue()} == set(PLANES)


def test_there_are_at_least_25_legal_faults_and_seven_kinds_of_wrong_bytes_in_five_places() -> None:
    assert len(LEGAL) >= 25
    corrupting = {each.name for each in catalogue() if not each.legal}
    assert corrupting == {f"{place}.{kind}" for place in PLACES for kind in CORRUPTING} and len(corrupting) == 35


@pytest.mark.parametrize("fault", sorted(LEGAL.keys() - KILLS))
def test_a_legal_fault_fires(fault: str, runs: dict[str, Outcome]) -> None:
    [outcome] = [runs[workload] for workload, points in WORKLOADS.items() if fault.startswith(points)]
    assert fired(outcome, fault) > 0


@pytest.mark.parametrize("workload", WORKLOADS)
def test_a_correct_stack_survives_all_of_them_at_once(workload: str, runs: dict[str, Outcome]) -> None:
    outcome = runs[workload]
    assert outcome.findings == () and outcome.verdict.word in ("clean", "vacuous"), outcome.verdict.why


def test_a_killed_prefill_worker_leaves_no_wrong_byte(tmp_path: Path) -> None:
    outcome = run_with((some("pd.prefill_worker", "kill", times=1),), "generic_pd", tmp_path)
    assert fired(outcome, "pd.prefill_worker.kill") == 1 and outcome.findings == ()


def test_a_killed_rank_ends_the_stack_and_is_named(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="rank 1 never came"):
        run_with((some("split.rank", "kill", times=1, probability=1.0),), "generic_layersplit", tmp_path)
