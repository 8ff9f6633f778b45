"""A checkpoint's tensors by their Hugging Face names, fused and absorbed into what the forward needs.

Weights of products, "inputs to outputs" below, are in the kernels' panels (`panels.in_panels`).

Absorption (DeepSeek-V2, arXiv:2405.04434, section 2.1.2): `kv_b_proj` expands a latent row into each head's
key and value. Both expansions are linear, so the key's moves into the query projection and the value's into
the output projection, and attention runs on the latents themselves.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from repro.base.errors import UsageError
from repro.serve.model.config import ModelConfig
from repro.serve.model.panels import PANEL, Floats, in_panels


class CheckpointError(UsageError):
    """A checkpoint folder lacks a tensor, or holds one of another shape than its config says."""


class AttentionWeights(NamedTuple):
    """One layer's attention and indexer; products that share their input are stacked into one weight."""

    input_norm: Floats  # (hidden,)
    low: Floats  # hidden to q_lora + kv_lora + rope + index_width + index_heads
    query_norm: Floats  # (q_lora,)
    latent_norm: Floats  # (kv_lora,)
    index_norm: Floats  # (index_width,)
    index_norm_bias: Floats  # (index_width,)
    queries: Floats  # q_lora to heads * (kv_lora + rope) + index_heads * index_width
    output: Floats  # heads * kv_lora to hidden


class FeedForwardWeights(NamedTuple):
    """One layer's gated MLP, its own where it is dense, else the shared expert, and its routed experts, if any."""

    norm: Floats  # (hidden,)
    gate_up: Floats  # hidden to 2 * width
    down: Floats  # width to hidden
    router: Floats  # hidden to experts
    correction_bias: Floats  # (experts,); of no length where the layer is dense
    expert_gate_up: Floats  # experts of hidden to 2 * width
    expert_down: Floats  # experts of width to hidden


@dataclass(frozen=True)
class LayerWeights:
    """One decoder layer."""

    attention: AttentionWeights
    feed_forward: FeedForwardWeights


@dataclass(frozen=True)
class MtpWeights:
    """The multi-token-prediction head around its own decoder layer."""

    token_norm: Floats  # (hidden,)
    hidden_norm: Floats  # (hidden,)
    combine: Floats  # 2 * hidden to hidden
    output_norm: Floats  # (hidden,)


@dataclass(frozen=True)
class ModelWeights:
    """All fp32 weights of a model; MTP layers stand behind the model's own in `layers`."""

    embeddings: Tensor  # (vocabulary, hidden)
    layers: tuple[LayerWeights, ...]
    norm: Floats  # (hidden,)
    head: Floats  # hidden to vocabulary
    mtp: tuple[MtpWeights, ...]


class CheckpointFolder(Mapping[str, Tensor]):
    """The tensors of all safetensors files in a folder, mapped, and read when asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        paths = sorted(folder.glob("*.safetensors"))
        if not paths:
            raise CheckpointError(f"{folder}: no *.safetensors file; expected one beside config.json")
        try:
            files: list[Any] = [safe_open(path, framework="pt") for path in paths]
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{folder}: unreadable safetensors: {error}; fetch them again") from error
        self._file_of = {name: file for file in files for name in file.keys()}  # noqa: SIM118 - no mapping

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._file_of[name].get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)


def load_weights(config: ModelConfig, tensors: Mapping[str, Tensor]) -> ModelWeights:
    """Return the fused fp32 weights; raises CheckpointError naming a missing or misshapen tensor."""
    source = _Source(tensors, "model.")
    hidden, vocabulary = config.hidden_size, config.vocab_size
    embeddings = source.take("embed_tokens.weight", vocabulary, hidden)
    has_mtp = config.num_nextn_predict_layers > 0 and any(
        name.startswith(f"model.layers.{config.num_hidden_layers}.") for name in tensors
    )
    mtp_layers = range(config.num_hidden_layers, config.num_hidden_layers + config.num_nextn_predict_layers)
    extra = tuple(mtp_layers) if has_mtp else ()
    head = embeddings
    if not config.tie_word_embeddings:
        head = _Source(tensors, "").take("lm_head.weight", vocabulary, hidden)
    return ModelWeights(
        embeddings=embeddings,
        layers=tuple(_layer(config, source, layer) for layer in (*range(config.num_hidden_layers), *extra)),
        norm=source.vector("norm.weight", hidden),
        head=in_panels(head),
        mtp=tuple(_mtp(config, source.within(f"layers.{layer}.")) for layer in extra),
    )


@dataclass(frozen=True)
class _Source:
    """Tensors below a name prefix."""

    tensors: Mapping[str, Tensor]
    prefix: str

    def within(self, prefix: str) -> "_Source":
        return _Source(self.tensors, self.prefix + prefix)

    def has(self, name: str) -> bool:
        return self.prefix + name in self.tensors

    def take(self, name: str, *shape: int) -> Tensor:
        """Return the named tensor in fp32, of exactly this shape."""
        full = self.prefix + name
        if full not in self.tensors:
            raise CheckpointError(f"tensor {full} is missing; expected shape {shape}")
        tensor = self.tensors[full].detach().to(torch.float32)
        if tuple(tensor.shape) != shape:
            raise CheckpointError(f"tensor {full} has shape {tuple(tensor.shape)}; its config says {shape}")
        return tensor

    def vector(self, name: str, width: int) -> Floats:
        """Return a named tensor of one dimension."""
        vector: Floats = np.ascontiguousarray(self.take(name, width).numpy())
        return vector


def _layer(config: ModelConfig, source: _Source, layer: int) -> LayerWeights:
    source = source.within(f"layers.{layer}.")
    return LayerWeights(_attention(config, source), _feed_forward(config, source, layer))


def _attention(config: ModelConfig, source: _Source) -> AttentionWeights:
    hidden, lora = config.hidden_size, config.q_lora_rank
    attention, indexer = source.within("self_attn."), source.within("self_attn.indexer.")
    # relu(scale * x) is scale * relu(x): both of the indexer's scales go into its head weights.
    index_scale = config.index_head_dim**-0.5 * config.index_n_heads**-0.5
    low = [
        attention.take("q_a_proj.weight", lora, hidden),
        attention.take("kv_a_proj_with_mqa.weight", config.latent_width, hidden),
        indexer.take("wk.weight", config.index_head_dim, hidden),
        indexer.take("weights_proj.weight", config.index_n_heads, hidden) * index_scale,
    ]
    index_queries = indexer.take("wq_b.weight", config.index_n_heads * config.index_head_dim, lora)
    queries, output = _absorb(config, attention)
    return AttentionWeights(
        input_norm=source.vector("input_layernorm.weight", hidden),
        low=in_panels(torch.cat(low)),
        query_norm=attention.vector("q_a_layernorm.weight", lora),
        latent_norm=attention.vector("kv_a_layernorm.weight", config.kv_lora_rank),
        index_norm=indexer.vector("k_norm.weight", config.index_head_dim),
        index_norm_bias=indexer.vector("k_norm.bias", config.index_head_dim),
        queries=in_panels(torch.cat([queries, index_queries])),
        output=in_panels(output),
    )


def _absorb(config: ModelConfig, attention: _Source) -> tuple[Tensor, Tensor]:
    """Return the query projection into the latent's space, scaled, and the output projection out of it."""
    heads, nope, value = config.num_attention_heads, config.qk_nope_head_dim, config.v_head_dim
    expand = attention.take("kv_b_proj.weight", heads * (nope + value), config.kv_lora_rank)
    w_uk, w_uv = torch.split(expand.double().view(heads, nope + value, -1), [nope, value], dim=1)
    query = attention.take("q_b_proj.weight", heads * config.qk_head_dim, config.q_lora_rank).double()
    query = query.view(heads, config.qk_head_dim, -1)
    query_nope, query_rope = torch.split(query, [nope, config.qk_rope_head_dim], dim=1)
    queries = torch.cat([w_uk.transpose(1, 2) @ query_nope, query_rope], dim=1) * config.qk_head_dim**-0.5
    output = attention.take("o_proj.weight", config.hidden_size, heads * value).double()
    output = torch.einsum("dhv,hvl->dhl", output.view(-1, heads, value), w_uv)
    return queries.flatten(0, 1).float(), output.flatten(1).float()


def _feed_forward(config: ModelConfig, source: _Source, layer: int) -> FeedForwardWeights:
    norm = source.vector("post_attention_layernorm.weight", config.hidden_size)
    if config.is_dense(layer):
        gate_up, down = _gated_mlp(config, source.within("mlp."), config.intermediate_size)
        no_experts = np.zeros((0, 1, 1, PANEL), np.float32)
        none = np.zeros(0, np.float32)
        return FeedForwardWeights(
            norm, in_panels(gate_up), in_panels(down), no_experts[0:0, 0], none, *[no_experts] * 2
        )
    experts, source = config.n_routed_experts, source.within("mlp.")
    shared_width = config.moe_intermediate_size * config.n_shared_experts
    gate_up, down = _gated_mlp(config, source.within("shared_experts."), shared_width)
    return FeedForwardWeights(
        norm,
        in_panels(gate_up),
        in_panels(down),
        in_panels(source.take("gate.weight", experts, config.hidden_size)),
        source.vector("gate.e_score_correction_bias", experts),
        *map(in_panels, _experts(config, source)),
    )


def _gated_mlp(config: ModelConfig, source: _Source, width: int) -> tuple[Tensor, Tensor]:
    """Return the weights (2 * width, hidden), gate before up, and (hidden, width)."""
    gate = source.take("gate_proj.weight", width, config.hidden_size)
    up = source.take("up_proj.weight", width, config.hidden_size)
    return torch.cat([gate, up]), source.take("down_proj.weight", config.hidden_size, width)


def _experts(config: ModelConfig, source: _Source) -> tuple[Tensor, Tensor]:
    """Return the weights of all routed experts, (experts, 2 * width, hidden) and (experts, hidden, width)."""
    count, width, hidden = config.n_routed_experts, config.moe_intermediate_size, config.hidden_size
    if source.has("experts.gate_up_proj"):  # `transformers` holds them so in memory
        gate_up = source.take("experts.gate_up_proj", count, 2 * width, hidden)
        return gate_up, source.take("experts.down_proj", count, hidden, width)
    parts = [_gated_mlp(config, source.within(f"experts.{expert}."), width) for expert in range(count)]
    return torch.stack([gate_up for gate_up, _ in parts]), torch.stack([down for _, down in parts])


def _mtp(config: ModelConfig, source: _Source) -> MtpWeights:
    hidden = config.hidden_size
    return MtpWeights(
        token_norm=source.vector("enorm.weight", hidden),
        hidden_norm=source.vector("hnorm.weight", hidden),
        combine=in_panels(source.take("eh_proj.weight", hidden, 2 * hidden)),
        output_norm=source.vector("shared_head.norm.weight", hidden),
    )
