"""How much fits, and what is refused: with the numbers, and the next step."""

import asyncio
import json
from pathlib import Path

import msgspec
import pytest

from repro.base.errors import ScenarioError, UsageError
from repro.fault.kinds import Kill
from repro.fault.plan import Fault, When
from repro.scenario.schema import parse
from repro.serve.config import EngineConfig, LayerSplitConfig
from repro.serve.device.sim import SimDevice
from repro.serve.layersplit.collective import CollectiveError, Exchange
from repro.serve.layersplit.engine import SplitEngine
from repro.serve.layersplit.partition import owned_layers, owner_of, sizes
from repro.serve.layersplit.simulated import SimCollective, SimGroup
from tests.serve.engine.builders import make_request, prompt
from tests.serve.layersplit.builders import SplitStack, layered_model, split_config


@pytest.mark.parametrize(("layers", "ranks"), [(78, 8), (6, 4), (5, 5), (7, 1)])
def test_layers_are_owned_once_contiguously_and_balanced(layers: int, ranks: int) -> None:
    owned = [owned_layers(rank, layers, ranks) for rank in range(ranks)]
    assert [layer for each in owned for layer in each] == list(range(layers))
    assert max(map(len, owned)) - min(map(len, owned)) <= 1
    assert all(layer in owned[owner_of(layer, layers, ranks)] for layer in range(layers))


def test_eight_ranks_hold_seven_times_the_tokens_of_glm5_in_the_same_memory() -> None:
    replicated = EngineConfig(
        device_pages=7155, context_tokens=131_072, layersplit=LayerSplitConfig(ranks=8, split=False)
    )
    split = msgspec.structs.replace(replicated, layersplit=LayerSplitConfig(ranks=8))
    pages = [sizes(config, 78).device_pages for config in (replicated, split)]
    assert pages == [7155, 7155 * 78 // (10 + 1)]
    assert pages[1] / pages[0] == pytest.approx(7.09, abs=0.01)


def test_server_info_tells_how_many_tokens_fit_and_who_keeps_which_layers() -> None:
    engine = SplitEngine(split_config(3), layered_model(), SimDevice())
    described = engine.served.description
    json.dumps(described)
    assert described["max_total_num_tokens"] == (16 * 5 // (2 + 1)) * 4
    assert described["layersplit_kept_layers"] == [[0, 2], [2, 4], [4, 5]]


def test_a_rank_has_memory_for_its_own_layers_and_the_scratch_only() -> None:
    stack = SplitStack(split_config(3, scratch=2))
    for rank in stack.engine.group._ranks:
        pools = rank.pools
        assert pools["device"].stamps["latent"].shape[0] == len(pools["device"].layer_numbers) <= 2
        assert pools["host"].layer_numbers == pools["device"].layer_numbers


def test_more_ranks_than_layers_are_refused() -> None:
    with pytest.raises(UsageError, match=r"layersplit.ranks = 6: the model has 5 layers.*use at most 5 ranks"):
        SplitStack(split_config(6))


def test_a_memory_too_small_for_the_scratch_buffers_is_refused() -> None:
    with pytest.raises(UsageError, match=r"1 own layers and 2 scratch buffers; context_tokens .* raise device_pages"):
        SplitStack(split_config(2, pages=8, scratch=2), layered_model(2))


def test_a_context_may_take_its_share_of_what_the_ranks_hold_together() -> None:
    longer = {"context_tokens": 80}  # of 16 pages of 4 tokens in all layers; split, there are 26
    assert sizes(split_config(3, engine=longer), 5).device_pages == 26
    with pytest.raises(ValueError, match="more than 80% of device_pages = 16"):
        split_config(3, engine=longer, split=False)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("layersplit = { ranks = 0 }", "layersplit.ranks = 0"),
        ("layersplit = { ranks = 99 }", "between 1 and 12"),
        ("layersplit = { scratch = 3 }", "layersplit.scratch = 3"),
        ("layersplit = { rank = 3 }", 'nearest: "ranks"'),
        ("layersplit = { ranks = 2 }\npd = { prefill = 1 }", "layersplit and pd don't go together"),
        ("layersplit = { ranks = 2 }\nspeculative_drafts = 2", "layersplit and speculative_drafts"),
    ],
)
def test_impossible_settings_are_refused_with_the_key(lines: str, said: str) -> None:
    with pytest.raises(ScenarioError, match=said):
        parse(f'format = 1\ntitle = "t"\n[target]\n{lines}\n', "small", "small.toml")


@pytest.mark.parametrize("skip", [2, 5])
def test_a_rank_that_dies_ends_the_stack_with_a_clear_error_and_no_answer(skip: int) -> None:
    dies = Fault("split.rank", Kill(), When(skip=skip, times=1))
    stack = SplitStack(split_config(3, timeout_s=2.0), faults=(dies,))
    finished = []

    async def main(stack: SplitStack) -> None:
        async def one(number: int) -> None:
            await stack.ask(make_request(f"r{number}", prompt(number, 14), answer=12))
            finished.append(number)

        await asyncio.gather(*(one(number) for number in range(4)))

    with pytest.raises(CollectiveError, match=r"rank [12] never came to the .*; a rank has died or hangs: restart"):
        stack.run(main)
    assert not finished
    assert stack.device.now_us < 4e6


def test_ranks_that_enqueue_in_different_order_are_told_so_instead_of_hanging() -> None:
    group = SimGroup(2)
    first, second = (SimCollective(group, rank) for rank in range(2))
    device = SimDevice()

    def exchange(name: str) -> Exchange:
        return Exchange(name, 3, 7, (), lambda _: (), lambda *_: None, 1.0)

    first.all_gather(device.stream("R0.collective"), exchange("rows"))
    second.enabled = True
    with pytest.raises(CollectiveError, match=r"rank 1 enqueued a broadcast of index, layer 3.*rank 0 a all-gather"):
        second.broadcast(device.stream("R1.collective"), exchange("index"), 0)


def test_the_bundled_scenarios_name_defects_that_need_a_split_target(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="takes a .target. with layersplit"):
        parse('format = 1\ntitle = "t"\ndefects = ["layersplit_wrong_owner"]\n', "small", "small.toml")
