"""Loading checkpoints: transformers' own files, both names of experts, MTP, and what is refused."""

import pytest
import torch
import torch.nn.functional as functional
from safetensors.torch import load_file, save_file

from repro.serve.model import mtp
from repro.serve.model.config import read_config
from repro.serve.model.glm5 import Glm5, load_model
from repro.serve.model.weights import CheckpointError, load_weights
from tests.serve.model.builders import TINY, Cache, make_model, make_reference


@pytest.fixture
def saved(tmp_path):
    reference = make_reference(TINY)
    reference.save_pretrained(tmp_path)
    return reference, tmp_path


def rewrite(folder, change) -> None:
    """Change the tensors of a saved checkpoint."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_files_that_transformers_wrote_equal_its_tensors_in_memory(saved):
    reference, folder = saved
    tokens = torch.arange(40)
    from_file = Cache(load_model(folder), 1, 40).prefill(0, tokens, 40)
    from_memory = Cache(make_model(reference, folder), 1, 40).prefill(0, tokens, 40)
    assert torch.equal(from_file, from_memory)


def test_a_missing_tensor_is_named(saved):
    name = "model.layers.1.self_attn.indexer.wk.weight"
    rewrite(saved[1], lambda tensors: tensors.pop(name))
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        load_model(saved[1])


def test_a_misshapen_tensor_is_named_with_both_shapes(saved):
    rewrite(saved[1], lambda tensors: tensors.update({"lm_head.weight": torch.zeros(5, 64)}))
    with pytest.raises(CheckpointError, match=r"lm_head.weight has shape \(5, 64\).*\(96, 64\)"):
        load_model(saved[1])


def test_a_folder_without_weights_or_with_a_torn_file_is_refused(saved):
    path = saved[1] / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="unreadable"):
        load_model(saved[1])
    path.unlink()
    with pytest.raises(CheckpointError, match="no .*safetensors"):
        load_model(saved[1])


def rms_norm(rows: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    return functional.rms_norm(rows, (rows.shape[-1],), weight, epsilon)


def test_mtp_head_equals_transformers_layer_inside_the_plain_formula(tmp_path):
    """The reference's last layer serves as the MTP layer of a model that is one layer shorter."""
    reference = make_reference(TINY)
    reference.config.save_pretrained(tmp_path)
    full = read_config(tmp_path / "config.json")
    config = type(full)(**{name: getattr(full, name) for name in full.__struct_fields__} | {
        "num_hidden_layers": 2, "num_nextn_predict_layers": 1, "mlp_layer_types": ("dense", "sparse"),
        "indexer_types": None,
    })  # fmt: skip
    generator = torch.Generator().manual_seed(3)
    extra = {
        "enorm.weight": torch.rand(64, generator=generator) + 0.5,
        "hnorm.weight": torch.rand(64, generator=generator) + 0.5,
        "eh_proj.weight": torch.randn(64, 128, generator=generator) * 0.1,
        "shared_head.norm.weight": torch.rand(64, generator=generator) + 0.5,
    }
    tensors = reference.state_dict() | {f"model.layers.2.{name}": tensor for name, tensor in extra.items()}
    model = Glm5(config, load_weights(config, tensors))
    hidden, tokens = torch.randn(20, 64, generator=generator), torch.arange(20) * 3

    rows = mtp.draft_input(model, hidden, tokens)
    cache = Cache(model, 1, 20)
    context = model.context(cache.table, torch.zeros(20, dtype=torch.int64), torch.arange(20), page_size=16)
    logits = model.head(mtp.draft_hidden(model, cache.run_layer(2, rows, context)))

    embedded = reference.model.embed_tokens(tokens)
    parts = [rms_norm(embedded, extra["enorm.weight"], 1e-5), rms_norm(hidden, extra["hnorm.weight"], 1e-5)]
    plain = torch.cat(parts, dim=-1) @ extra["eh_proj.weight"].t()
    rotations = reference.model.rotary_emb(plain[None], torch.arange(20)[None])
    mask = torch.full((20, 20), torch.finfo(torch.float32).min).triu(1)[None, None]
    expected, _ = reference.model.layers[2](plain[None], attention_mask=mask, position_embeddings=rotations)
    expected = reference.lm_head(rms_norm(expected[0], extra["shared_head.norm.weight"], 1e-5))
    assert (logits - expected).abs().max() <= 1e-3
