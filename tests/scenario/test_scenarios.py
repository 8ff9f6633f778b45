"""Every scenario is two-sided: with its defect it is found, with the guard in place it is silent."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from repro.scenario.schema import find
from repro.search.mutate.study import in_stamps
from tests.small import larger, run_small, small_scenario


@pytest.mark.parametrize("seed", [7, 8])
def test_hicache_early_read_is_found_and_its_control_silent(seed: int, tmp_path: Path) -> None:
    scenario = small_scenario("tensors")
    found = run_small(tmp_path, scenario, seed=seed)
    assert found.verdict.word == "anomaly"
    assert {"ordering", "canary"} <= found.verdict.findings.keys()
    control = run_small(tmp_path, scenario, seed=seed, control=True)
    assert control.verdict.word == "clean", control.verdict.why
    assert control.verdict.findings == {}
    [fault] = control.verdict.faults.values()
    assert fault.fired > 0 and fault.reordered > 0


@pytest.mark.parametrize("seed", [7, 8])
def test_with_pages_sampled_the_race_is_found_on_a_page_of_the_sample_and_the_control_is_silent(
    seed: int, tmp_path: Path
) -> None:
    scenario = larger(small_scenario(pages_sampled=16))
    found = run_small(tmp_path, scenario, seed=seed)
    races = [finding for finding in found.findings if finding.detector == "ordering"]
    assert races and all(finding.evidence.page % 16 == seed % 16 for finding in races)
    control = run_small(tmp_path, scenario, seed=seed, control=True)
    assert control.verdict.word == "clean", control.verdict.why


def test_an_index_store_that_waits_hides_the_defect_by_accident(tmp_path: Path) -> None:
    hidden = run_small(tmp_path, small_scenario(index_store_waits=True))
    assert hidden.verdict.findings == {}
    assert hidden.verdict.word == "clean", hidden.verdict.why


def test_without_faults_the_missing_wait_is_still_convicted_by_ordering(tmp_path: Path) -> None:
    found = run_small(tmp_path, small_scenario(), no_faults=True)
    assert found.verdict.findings["ordering"] > 0


@pytest.mark.parametrize("name", ["hicache_host_evict_early", "hicache_partial_prefetch"])
def test_a_defect_of_the_tiers_below_the_device_is_found_and_its_control_silent(name: str, tmp_path: Path) -> None:
    scenario = in_stamps(find(name))
    scenario = replace(scenario, load=replace(scenario.load, sessions=8, turns=3, answer_tokens_max=24))
    found = run_small(tmp_path, scenario)
    assert set(found.verdict.findings) >= set(scenario.expect.detectors)
    control = run_small(tmp_path, scenario, control=True)
    assert control.verdict.word == "clean", control.verdict.why
    assert control.verdict.findings == {}
