"""The race of SGLang #22811 in SGLang's own classes: found without its waits, silent with them."""

import subprocess
import sys
from pathlib import Path

import pytest

from repro.engines.sglang import pinned
from tests.engines.sglang.builders import LAYERS, SLOW_COMPUTE, SLOW_LOAD, component, needs_sglang, run_component

pytestmark = needs_sglang


@pytest.mark.parametrize("seed", [7, 8])
def test_without_the_waits_a_slow_load_is_read_early_in_every_layer_and_with_them_in_none(
    seed: int, tmp_path: Path
) -> None:
    found, heard = run_component(tmp_path, component(), seed=seed)
    assert found.verdict.word == "anomaly"
    assert found.verdict.findings.keys() == {"ordering", "canary"}
    assert {key for key, rows in heard.wrong.items() if rows} == {("index", layer) for layer in range(LAYERS)}
    control, heard = run_component(tmp_path, component(), seed=seed, control=True)
    assert control.verdict.word == "clean", control.verdict.why
    assert not heard.wrong and control.verdict.findings == {}
    [fault] = control.verdict.faults.values()
    assert fault.fired > 0 and fault.reordered > 0


def test_the_fused_store_hides_the_missing_waits_by_accident(tmp_path: Path) -> None:
    hidden, heard = run_component(tmp_path, component(fused_store=True))
    assert hidden.verdict.word == "clean", hidden.verdict.why
    assert not heard.wrong


def test_slow_compute_lets_the_load_run_ahead_and_ordering_still_convicts(tmp_path: Path) -> None:
    found, heard = run_component(tmp_path, component(SLOW_COMPUTE))
    _, of_slow_load = run_component(tmp_path, component(SLOW_LOAD))
    assert found.verdict.findings["ordering"] > 0
    assert heard.wrong.total() < of_slow_load.wrong.total()


def test_the_defect_takes_the_wait_of_the_index_read_and_nothing_else(tmp_path: Path) -> None:
    _, without = run_component(tmp_path, component(""))
    _, within = run_component(tmp_path, component(""), control=True)
    assert not without.index_waits[True] and within.index_waits[True]
    assert without.sites == within.sites


def test_operations_are_named_by_the_line_of_sglang_that_launched_them(tmp_path: Path) -> None:
    _, heard = run_component(tmp_path, component())
    lines = {name: site.partition(":")[0] for name, site in sorted(heard.sites)}
    assert lines["forward.index"] == "sglang/srt/mem_cache/memory_pool.py"
    assert lines["loadback.copy_layer"] == lines["writeback.copy_layer"] == "sglang/srt/mem_cache/memory_pool_host.py"
    assert lines["forward.attend"] == "engines/sglang/classes/forward.py"


def test_the_same_seed_is_the_same_run_in_another_process(tmp_path: Path) -> None:
    here, _ = run_component(tmp_path, component(), seed=3)
    script = (
        "import sys; from pathlib import Path; from tests.engines.sglang.builders import component, run_component; "
        "print(run_component(Path(sys.argv[1]), component(), seed=3)[0].fingerprint)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == here.fingerprint
    other, _ = run_component(tmp_path, component(), seed=4)
    assert other.fingerprint != here.fingerprint


def test_what_a_request_stores_after_a_wrong_read_poisons_who_reuses_it(tmp_path: Path) -> None:
    found, _ = run_component(tmp_path, component())
    assert found.verdict.funnel.poisoned > 0


def test_all_files_of_the_tree_age_its_nodes_by_one_clock(tmp_path: Path) -> None:
    run_component(tmp_path, component(""))
    sglang = pinned.load()
    assert sglang.radix_cache.time is sglang.hiradix_cache.time is sglang.cache_controller.time
    assert sglang.radix_cache.time.monotonic() < sglang.hiradix_cache.time.monotonic()
