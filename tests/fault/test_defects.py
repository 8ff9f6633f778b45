"""Defects: each leaves out exactly its own guards."""

import pytest

from repro.base.errors import ScenarioError
from repro.fault.defects import DEFECTS, check, with_defects
from repro.serve.config import EngineConfig
from repro.serve.guards import DECISIONS, WAITS, Guards
from tests.litmus.platform import SimPlatform, nothing


def replaced(guards: Guards) -> set[str]:
    return {name for name in (*WAITS, *DECISIONS) if guards[name] is not Guards()[name]}


def test_without_defects_all_guards_are_in_place() -> None:
    assert replaced(with_defects((), "x.toml")) == set()


def test_the_early_read_leaves_out_the_index_reads_wait_and_no_other() -> None:
    assert replaced(with_defects(("hicache_early_read",), "x.toml")) == {"before_index_read"}


@pytest.mark.parametrize("name", DEFECTS)
def test_every_defect_replaces_a_guard_and_names_its_public_report(name: str) -> None:
    assert replaced(with_defects((name,), "x.toml"))
    assert DEFECTS[name].name == name
    assert DEFECTS[name].reference.startswith("https://")


def test_an_unknown_defect_is_refused_with_the_nearest() -> None:
    with pytest.raises(ScenarioError, match='^x.toml: "hicache_erly_read" is no defect; nearest: "hicache_early_read"'):
        with_defects(("hicache_erly_read",), "x.toml")


@pytest.mark.parametrize(
    ("name", "setting"),
    [("hicache_draft_not_restored", {"speculative_drafts": 3}), ("sched_row_recycled", {"upload_stream": True})],
)
def test_a_defect_that_needs_a_setting_is_refused_without_it(name: str, setting: dict[str, int]) -> None:
    with pytest.raises(ScenarioError, match=f'^x.toml: "{name}" takes a \\[target\\] with {next(iter(setting))}'):
        check((name,), EngineConfig(), "x.toml")
    check((name,), EngineConfig(**setting), "x.toml")  # type: ignore[arg-type]


def test_without_a_draft_layer_every_layer_of_the_model_is_loaded_with_the_defect_too() -> None:
    guards = with_defects(("hicache_draft_not_restored",), "x.toml")
    assert guards.decisions.loaded_layers(range(6), range(6, 6)) == (0, 1, 2, 3, 4, 5)
    assert guards.decisions.loaded_layers(range(6), range(6, 7)) == (0, 1, 2, 3, 4, 5)


class Loads:
    """A load-back whose layers are all done behind one event."""

    def __init__(self, platform: SimPlatform) -> None:
        self.load = platform.device.stream("load")
        self.load.enqueue("loadback.copy_layer", nothing, duration_us=500)
        self.done = platform.device.event("done")
        self.done.record(self.load)

    def layer_done(self, layer: int) -> object:
        return self.done


@pytest.mark.parametrize(("defects", "last"), [((), "forward.index"), (("hicache_early_read",), "loadback.copy_layer")])
def test_the_guard_holds_the_index_read_behind_the_load_and_the_defect_lets_it_pass(
    defects: tuple[str, ...], last: str
) -> None:
    platform = SimPlatform()
    compute = platform.device.stream("compute")

    async def main() -> None:
        guards = with_defects(defects, "x.toml")
        guards.waits.before_index_read(compute, Loads(platform), 0)  # type: ignore[arg-type]
        compute.enqueue("forward.index", nothing, duration_us=10)

    platform.run(main)
    assert platform.ops[-1].name == last
