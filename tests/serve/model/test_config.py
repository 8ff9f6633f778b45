"""Reading config.json: GLM-5's own is taken, and what is wrong is named."""

import json

import pytest

from repro.serve.model.config import ModelConfigError, read_config
from tests.serve.model.builders import CHECKPOINT, TINY

# The keys of https://huggingface.co/zai-org/GLM-5/blob/main/config.json that say something about sizes.
GLM5 = {
    "architectures": ["GlmMoeDsaForCausalLM"], "model_type": "glm_moe_dsa", "attention_bias": False,
    "eos_token_id": [154820, 154827, 154829], "ep_size": 1, "first_k_dense_replace": 3, "hidden_act": "silu",
    "head_dim": 64, "hidden_size": 6144, "index_head_dim": 128, "index_n_heads": 32, "index_topk": 2048,
    "indexer_rope_interleave": True, "intermediate_size": 12288, "kv_lora_rank": 512,
    "max_position_embeddings": 202752, "moe_intermediate_size": 2048, "moe_layer_freq": 1, "n_group": 1,
    "n_routed_experts": 256, "n_shared_experts": 1, "norm_topk_prob": True, "num_attention_heads": 64,
    "num_experts_per_tok": 8, "num_hidden_layers": 78, "num_key_value_heads": 64,
    "num_nextn_predict_layers": 1,
    "pad_token_id": 154820, "q_lora_rank": 2048, "qk_head_dim": 256, "qk_nope_head_dim": 192,
    "qk_rope_head_dim": 64, "rms_norm_eps": 1e-05, "rope_interleave": True,
    "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"}, "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid", "tie_word_embeddings": False, "topk_group": 1, "topk_method": "noaux_tc",
    "v_head_dim": 256, "vocab_size": 154880,
}  # fmt: skip
SMALL = TINY | {"model_type": "glm_moe_dsa"}


def write(folder, content):
    path = folder / "config.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_glm5_s_own_config_is_read(tmp_path):
    config = read_config(write(tmp_path, GLM5))
    assert (config.num_hidden_layers, config.latent_width, config.index_topk) == (78, 576, 2048)
    assert [config.is_dense(layer) for layer in (2, 3, 78)] == [True, False, False]
    assert config.end_tokens == (154820, 154827, 154829)
    assert config.theta == 1e6


def test_the_bundled_config_is_read():
    assert read_config(CHECKPOINT / "config.json").model_type == "glm_moe_dsa"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "llama"}, "model_type"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"index_topk": 0}, "index_topk"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok"),
        ({"qk_rope_head_dim": 15}, "qk_rope_head_dim"),
        ({"index_head_dim": 8}, "index_head_dim"),
        ({"n_group": 3}, "n_group"),
        ({"rope_parameters": {"rope_theta": 1e4, "rope_type": "yarn"}}, "rope_type"),
        ({"rope_parameters": None}, "rope_parameters"),
        ({"indexer_types": ["full", "shared", "full"]}, "indexer_types"),
        ({"mlp_layer_types": ["dense"]}, "mlp_layer_types"),
        ({"attention_bias": True}, "attention_bias"),
    ],
    ids=str,
)
def test_a_wrong_value_is_refused_by_name(tmp_path, change, named):
    path = write(tmp_path, SMALL | change)
    with pytest.raises(ModelConfigError, match=named) as caught:
        read_config(path)
    assert str(path) in str(caught.value)


def test_a_missing_key_is_named(tmp_path):
    path = write(tmp_path, {key: value for key, value in SMALL.items() if key != "kv_lora_rank"})
    with pytest.raises(ModelConfigError, match="kv_lora_rank"):
        read_config(path)


def test_broken_json_and_a_missing_file_are_refused(tmp_path):
    with pytest.raises(ModelConfigError, match="not JSON"):
        read_config(write(tmp_path, '{"model_type": '))
    with pytest.raises(ModelConfigError, match="cannot be read"):
        read_config(tmp_path / "elsewhere" / "config.json")
