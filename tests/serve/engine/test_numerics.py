"""numerics = "stamps": the same schedule and findings as with tensors, and GLM-5's own sizes without weights."""

import asyncio
import json
import resource
from dataclasses import replace
from pathlib import Path

import pytest

from repro.base.probe import Op
from repro.fault.defects import with_defects
from repro.schedule.pickers import RandomPicker, timed
from repro.serve.config import EngineConfig
from repro.serve.engine import LoadedModel, load
from repro.serve.guards import Guards
from tests.serve.engine.builders import Stack, delay, letters, make_config, make_request, stamps_answer

DEFECT = with_defects(("hicache_early_read",), "this test")
FAULTS = (delay("loadback.copy_layer", 30_000, probability=0.5), delay("forward.store", 3_000, probability=0.1))

# The public config.json of zai-org/GLM-5: what the engine reads of it.
GLM5 = {
    "architectures": ["GlmMoeDsaForCausalLM"], "model_type": "glm_moe_dsa", "vocab_size": 154_880,
    "hidden_size": 6144, "intermediate_size": 12_288, "moe_intermediate_size": 2048, "num_hidden_layers": 78,
    "first_k_dense_replace": 3, "num_nextn_predict_layers": 1, "num_attention_heads": 64,
    "num_key_value_heads": 64, "q_lora_rank": 2048, "kv_lora_rank": 512, "qk_nope_head_dim": 192,
    "qk_rope_head_dim": 64, "qk_head_dim": 256, "v_head_dim": 256, "head_dim": 64, "index_n_heads": 32,
    "index_head_dim": 128, "index_topk": 2048, "n_routed_experts": 256, "n_shared_experts": 1,
    "num_experts_per_tok": 8, "n_group": 1, "topk_group": 1, "norm_topk_prob": True, "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid", "hidden_act": "silu", "rms_norm_eps": 1e-05, "attention_bias": False,
    "max_position_embeddings": 202_752, "rope_parameters": {"rope_theta": 1_000_000, "rope_type": "default"},
    "tie_word_embeddings": False, "eos_token_id": [154_820, 154_827, 154_829], "pad_token_id": 154_820,
}  # fmt: skip


def session_tokens(session: int, length: int) -> tuple[int, ...]:
    return tuple(20 + (31 * place + 577 * session) % 3000 for place in range(length))


async def sessions(stack: Stack) -> None:
    """Three turns of four sessions, fixed in everything: prompts grow, answers have a length and no meaning."""

    async def turns(session: int) -> None:
        for turn in range(3):
            await asyncio.sleep(0.4 * turn + 0.05 * session)
            tokens = session_tokens(session, 150 + 20 * session + 70 * turn)
            answer = await stack.ask(make_request(f"s{session}-{turn}", tokens, 3 + session))
            assert answer.last.completion_tokens == 3 + session

    await asyncio.gather(*(turns(session) for session in range(4)))


def run_sessions(model: LoadedModel, picker: str, guards: Guards = DEFECT) -> Stack:
    config = make_config(
        numerics="stamps" if model.weights is None else "tensors", page_tokens=32, device_pages=24, host_pages=96,
        context_tokens=384, chunk_tokens=128,
    )  # fmt: skip
    pick = timed if picker == "timed" else RandomPicker(5)
    return Stack(config, model, guards=guards, faults=FAULTS, pick=pick).run(sessions)


def first_hand_index(stack: Stack) -> list[tuple[str, int, int, int, int]]:
    reads = [bad for bad in stack.bad_reads if bad.component == "index" and not bad.origin]
    return [(bad.request, bad.index, bad.layer, bad.tokens, bad.first_position) for bad in reads]


def timeline(stack: Stack) -> list[tuple[str, int, str, float, float]]:
    return [(op.stream, op.index, op.name, op.start_us, op.end_us) for op in stack.events if isinstance(op, Op)]


@pytest.mark.parametrize("picker", ["timed", "random"])
def test_stamps_and_tensors_find_the_same_in_the_same_schedule(picker: str, bundled: LoadedModel) -> None:
    tensors = run_sessions(bundled, picker)
    stamps = run_sessions(replace(bundled, weights=None), picker)
    assert timeline(stamps) == timeline(tensors)
    assert stamps.signatures == tensors.signatures != set()
    assert first_hand_index(stamps) == first_hand_index(tensors) != []
    assert stamps.canary.corrupted == tensors.canary.corrupted


def test_with_the_guard_in_place_both_are_silent(bundled: LoadedModel) -> None:
    for model in (bundled, replace(bundled, weights=None)):
        stack = run_sessions(model, "timed", Guards())
        stack.assert_clean()
        assert stack.engine.stats().load_back_tokens_total > 0


def test_no_tensor_is_made(bundled: LoadedModel) -> None:
    stack = Stack(make_config(), replace(bundled, weights=None))
    assert stack.engine._executor._forward._memory.pool.values == {"latent": None, "index": None}


# -- GLM-5's own sizes -------------------------------------------------------------------------------------


@pytest.fixture
def glm5(tmp_path: Path) -> EngineConfig:
    """Return the configuration of an engine for a folder with nothing but GLM-5's config.json."""
    (tmp_path / "config.json").write_text(json.dumps(GLM5))
    return EngineConfig(
        name="glm5", model=str(tmp_path), numerics="stamps", device_pages=1280, host_pages=2560,
        context_tokens=40_960, chunk_tokens=8192, rows=8,
    )  # fmt: skip


def test_glm5s_own_sizes_run_without_weights_and_show_the_race(glm5: EngineConfig) -> None:
    model = load(glm5, letters)
    shape = model.shape
    assert (shape.num_hidden_layers, shape.latent_width, shape.index_topk) == (78, 576, 2048)
    prompt = tuple((31 * place) % 150_000 for place in range(36_000))

    async def main(stack: Stack) -> None:
        first = await stack.ask(make_request("first", prompt, 2))
        assert first.tokens == stamps_answer(prompt, 2, shape.vocab_size)
        await stack.engine.cache.drain()
        stack.engine.cache.evict_device(1280)
        await stack.ask(make_request("filler", prompt[::-1], 1))
        again = await stack.ask(make_request("again", (*prompt, 7), 2))
        assert again.last.cached_host_tokens == 35_968

    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    stack = Stack(glm5, model, guards=DEFECT, faults=(delay("loadback.copy_layer", 5000),)).run(main)
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib
    assert len(first_hand_index(stack)) == 78
    assert len(stack.ops("loadback.copy_layer")) <= 2 * 78 * 16
    assert grown_kib < 2 * 2**20, f"{grown_kib} KiB"


def test_a_load_back_of_the_whole_context_fits_the_streams_queue(glm5: EngineConfig) -> None:
    config = EngineConfig(**{**{name: getattr(glm5, name) for name in glm5.__struct_fields__}, "copy_group_pages": 1})
    prompt = tuple((31 * place) % 150_000 for place in range(40_000))

    async def main(stack: Stack) -> None:
        await stack.ask(make_request("first", prompt))
        await stack.engine.cache.drain()
        stack.engine.cache.evict_device(1280)
        assert (await stack.ask(make_request("again", prompt))).last.cached_host_tokens == 39_936

    Stack(config, load(config, letters)).run(main).assert_clean()
