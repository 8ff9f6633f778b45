"""The checkpoint's files: `transformers` reads them and computes the same."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from repro.serve.server.chat import bundled_encoder, render
from repro.trace import synth
from repro.train import evaluate, export
from repro.train.attention import lowest_position_topk
from repro.train.data import encode_session
from repro.train.model import Glm5, ModelConfig
from repro.train.prepare import SPECIAL_TOKENS, UNREACHABLE_IDS, VOCAB_SIZE

CHECKPOINT = Path(export.__file__).parents[1] / "serve" / "model" / "checkpoint"
MTP_PREFIX = "model.layers.6."


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    return ModelConfig.from_json((CHECKPOINT / "config.json").read_text())


@pytest.fixture(scope="module")
def model(config: ModelConfig) -> Glm5:
    return export.read(CHECKPOINT / "model.safetensors", config).eval()


@pytest.fixture(scope="module")
def reference() -> tuple[Any, dict[str, Any]]:
    transformers = pytest.importorskip("transformers")
    loaded: tuple[Any, dict[str, Any]] = transformers.GlmMoeDsaForCausalLM.from_pretrained(
        CHECKPOINT, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    return loaded


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    session = synth.synthesise("code-review", 5, 0, prompt_tokens_target=900)
    return torch.tensor([encode_session(bundled_encoder(), session)])


def test_transformers_finds_every_tensor_and_only_the_mtp_layer_besides(reference: Any) -> None:
    _, report = reference
    assert not report["missing_keys"] and not report["mismatched_keys"]
    assert all(name.startswith(MTP_PREFIX) for name in report["unexpected_keys"])


@torch.no_grad()
def test_logits_are_those_of_transformers_below_the_top_k(
    model: Glm5, reference: Any, tokens: torch.Tensor, config: ModelConfig
) -> None:
    few = tokens[:, : config.index_topk]
    expected = reference[0](few).logits
    for sparse in (False, True):
        assert (model.lm_head(model(few, sparse=sparse).hidden) - expected).abs().max() < 1e-3


@torch.no_grad()
def test_sparse_attention_is_that_of_transformers_with_ties_decided_alike(
    model: Glm5, reference: Any, tokens: torch.Tensor, config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tokens.shape[1] > 4 * config.index_topk
    plain_topk = torch.Tensor.topk

    def decided_topk(scores: torch.Tensor, k: int, **options: Any) -> Any:
        if k != config.index_topk:  # the router's
            return plain_topk(scores, k, **options)
        chosen = lowest_position_topk(scores, k)
        return torch.return_types.topk((scores.gather(-1, chosen), chosen))

    monkeypatch.setattr(torch.Tensor, "topk", decided_topk)
    expected = reference[0](tokens).logits
    monkeypatch.undo()
    off = (model.lm_head(model(tokens, sparse=True).hidden) - expected).abs().amax(-1)
    # What is left are scores equal but for rounding: it moves few tokens, and those little.
    assert (off < 1e-3).float().mean() > 0.97
    dense_off = (model.lm_head(model(tokens).hidden) - expected).abs().amax(-1)
    assert (dense_off < 1e-3).float().mean() < 0.5


def test_a_checkpoint_reads_back_bit_for_bit(model: Glm5, tmp_path: Path) -> None:
    export.write(model, tmp_path / "again.safetensors")
    again, committed = load_file(tmp_path / "again.safetensors"), load_file(CHECKPOINT / "model.safetensors")
    assert again.keys() == committed.keys()
    assert all(torch.equal(again[name], committed[name]) for name in committed)


def test_a_missing_tensor_is_refused(config: ModelConfig) -> None:
    tensors = load_file(CHECKPOINT / "model.safetensors")
    del tensors["model.norm.weight"]
    with pytest.raises(RuntimeError, match="norm.weight"):
        export.import_tensors(tensors, config)


@torch.no_grad()
def test_the_committed_model_answers_held_out_sessions_exactly(model: Glm5) -> None:
    encoder = bundled_encoder()
    turns = [
        turn
        for session in evaluate.sessions(2, prompt_tokens_target=1500)
        for turn in evaluate.judge(model, encoder, session, torch.device("cpu"))
    ]
    assert len(turns) > 20
    assert sum(turn.exact for turn in turns) >= 0.9 * len(turns)
    drafted = sum(turn.answer_tokens - 1 for turn in turns)
    assert sum(turn.mtp_right for turn in turns) >= 0.95 * drafted


@torch.no_grad()
def test_an_untrained_model_answers_nothing_exactly(config: ModelConfig) -> None:
    model = Glm5(config).eval()
    model.initialise(torch.Generator().manual_seed(0))
    session = next(iter(evaluate.sessions(1, prompt_tokens_target=600)))
    turns = evaluate.judge(model, bundled_encoder(), session, torch.device("cpu"))
    assert not any(turn.exact for turn in turns)
    assert all(turn.first_wrong is not None for turn in turns)


def test_the_vocabulary_ends_with_ids_that_nothing_reaches() -> None:
    vocabulary = json.loads((CHECKPOINT / "tokenizer.json").read_text())["model"]["vocab"]
    assert max(vocabulary.values()) == VOCAB_SIZE - UNREACHABLE_IDS - 1
    assert json.loads((CHECKPOINT / "config.json").read_text())["vocab_size"] == VOCAB_SIZE


def test_the_model_ends_with_the_tokens_that_generation_stops_at() -> None:
    encoder = bundled_encoder()
    stops = [encoder.special_id(token) for token in ("<|endoftext|>", "<|user|>", "<|observation|>")]
    for name in ("config.json", "generation_config.json"):
        assert json.loads((CHECKPOINT / name).read_text())["eos_token_id"] == stops
    assert [encoder.special_id(token) for token in SPECIAL_TOKENS] == list(range(len(SPECIAL_TOKENS)))


def test_the_checkpoint_is_small_enough_to_ship() -> None:
    assert (CHECKPOINT / "model.safetensors").stat().st_size < 25_000_000


def test_transformers_reads_the_tokenizer_and_the_chat_template() -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(CHECKPOINT)
    called = {"type": "function", "function": {"name": "f", "arguments": {"k": "v"}}}
    messages = [
        {"role": "user", "content": "a < b"},
        {"role": "assistant", "content": "", "tool_calls": [called]},
        {"role": "tool", "content": "x\ny"},
    ]
    text = tokenizer.apply_chat_template(messages, tools=list(synth.TOOLS), tokenize=False, add_generation_prompt=True)
    assert text == render(messages, synth.TOOLS)
    assert tokenizer(text)["input_ids"] == bundled_encoder().encode_chat(messages, synth.TOOLS)
