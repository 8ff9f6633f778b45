"""Models of random weights, a paged cache, and the step that an engine makes of the leaf functions."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor
from transformers import GlmMoeDsaConfig, GlmMoeDsaForCausalLM
from transformers.models.glm_moe_dsa import modeling_glm_moe_dsa as reference_module

from repro.serve.model import config as model_config
from repro.serve.model.context import Context
from repro.serve.model.glm5 import Glm5
from repro.serve.model.weights import load_weights

CHECKPOINT = Path(model_config.__file__).parent / "checkpoint"

TINY = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32,
    "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4, "n_routed_experts": 4,
    "num_experts_per_tok": 2, "kv_lora_rank": 32, "q_lora_rank": 32, "qk_rope_head_dim": 16, "v_head_dim": 24,
    "qk_nope_head_dim": 16, "index_topk": 32, "index_head_dim": 32, "index_n_heads": 4,
    "first_k_dense_replace": 1, "max_position_embeddings": 512, "initializer_range": 0.08,
    "rope_parameters": {"rope_theta": 1e5, "rope_type": "default"},
}  # fmt: skip
# The bundled checkpoint's shape, for what must hold before and without it.
BUNDLED = TINY | {
    "vocab_size": 4096, "hidden_size": 256, "intermediate_size": 768, "moe_intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 8, "n_routed_experts": 8,
    "kv_lora_rank": 64, "q_lora_rank": 128, "qk_rope_head_dim": 32, "v_head_dim": 64, "qk_nope_head_dim": 32,
    "index_topk": 256, "index_head_dim": 64, "max_position_embeddings": 8192,
}  # fmt: skip


def make_reference(sizes: dict, seed: int = 0) -> GlmMoeDsaForCausalLM:
    """Return transformers' model with random weights, its router biases not zero."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        reference = GlmMoeDsaForCausalLM(GlmMoeDsaConfig(**sizes, attn_implementation="eager")).eval()
        for name, buffer in reference.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.normal_(std=0.1)
        for name, parameter in reference.named_parameters():
            if "norm" in name:
                parameter.data += 0.1 * torch.randn_like(parameter)
    return reference.requires_grad_(False)


def make_model(reference: GlmMoeDsaForCausalLM, tmp_path: Path) -> Glm5:
    """Return our model with the same weights."""
    reference.config.save_pretrained(tmp_path)
    config = model_config.read_config(tmp_path / "config.json")
    return Glm5(config, load_weights(config, reference.state_dict()))


@dataclass
class Cache:
    """Paged latents and index keys of all layers; unused slots hold NaN. Each row owns scattered pages."""

    model: Glm5
    num_rows: int
    max_tokens: int
    page_size: int = 16
    seed: int = 0
    table: Tensor = field(init=False)
    selected: list[list[Tensor]] = field(init=False)  # by layer, of each step: the positions attended to

    def __post_init__(self) -> None:
        pages = -(-self.max_tokens // self.page_size)
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(self.num_rows * pages + 3, generator=generator)[: self.num_rows * pages]
        self.table = order.view(self.num_rows, pages)
        config, slots = self.model.config, (self.num_rows * pages + 3) * self.page_size
        layers = len(self.model.weights.layers)
        self.selected = [[] for _ in range(layers)]
        self._position = torch.zeros(slots, dtype=torch.int64)
        self._position[self.slots_of_table()] = torch.arange(pages * self.page_size).repeat(self.num_rows)
        self.latents = torch.full((layers, slots, config.latent_width), torch.nan)
        self.index_keys = torch.full((layers, slots, config.index_head_dim), torch.nan)

    def slots(self, row: int, count: int) -> Tensor:
        """Return the slots of a row's first tokens."""
        return self.slots_of_table().view(self.num_rows, -1)[row, :count]

    def slots_of_table(self) -> Tensor:
        """Return all slots of all rows, row after row, by position."""
        return (self.table.flatten()[:, None] * self.page_size + torch.arange(self.page_size)).flatten()

    def step(self, parts: Sequence[tuple[int, int, Tensor]]) -> Tensor:
        """Return the last hidden row of every token of the parts (row, first position, tokens)."""
        model = self.model
        rows = torch.cat([torch.full((len(tokens),), row) for row, _, tokens in parts])
        positions = torch.cat([torch.arange(len(tokens)) + first for _, first, tokens in parts])
        context = model.context(self.table, rows, positions, page_size=self.page_size)
        hidden = model.embed(torch.cat([tokens for _, _, tokens in parts]))
        for layer in range(model.config.num_hidden_layers):
            hidden = self.run_layer(layer, hidden, context)
        return hidden

    def run_layer(self, layer: int, hidden: Tensor, context: Context) -> Tensor:
        """Return the layer's output, its cache rows written."""
        model = self.model
        projected = model.project(layer, hidden, context.positions)
        self.latents[layer, context.token_slots] = projected.latent
        self.index_keys[layer, context.token_slots] = projected.index_key
        selected = model.select(layer, projected, self.index_keys[layer], context)
        self.selected[layer].append(self._position[selected.slots])
        hidden = model.attend(layer, projected, self.latents[layer], selected)
        return model.feed_forward(layer, hidden)

    def prefill(self, row: int, tokens: Tensor, chunk: int) -> Tensor:
        """Return the logits of every token of a prompt, prefilled in chunks."""
        parts = [self.step([(row, int(at), tokens[at : at + chunk])]) for at in range(0, len(tokens), chunk)]
        return self.model.logits(torch.cat(parts))


@dataclass
class Cuts:
    """How transformers' indexer cut, while it was made to break ties as we do."""

    all: int = 0
    tied: int = 0  # exact ties at the cut
    near: int = 0  # our choice differs by scores that rounding cannot tell apart


# Two forwards that round differently agree on index scores to this share of the largest one.
SCORE_TOLERANCE = 1e-5
# transformers adds the least float to the scores of a token's future.
MASKED = torch.finfo(torch.float32).min / 2


@contextmanager
def lowest_position_ties(ours: list[Tensor] | None = None) -> Iterator[Cuts]:
    """Make transformers' indexer break ties by lowest position, and count them.

    With `ours`, each layer's selected positions of one whole prompt, it also takes our side where scores are
    nearly tied: asserted to be near, so that a wrong selection still fails.
    """
    cuts, pending = Cuts(), list(ours or [])
    original, forward = torch.Tensor.topk, reference_module.GlmMoeDsaIndexer.forward

    def topk(scores: Tensor, k: int, dim: int = -1) -> object:
        flat = scores.flatten(0, -2).contiguous()
        if k == flat.shape[-1]:
            return original(scores, k, dim=dim)
        chosen = best_positions(flat, k)
        cut = original(flat, k, dim=-1).values[:, -1:]
        real = (flat > MASKED).sum(-1) > k  # the others keep all of their context
        cuts.all += int(real.sum())
        cuts.tied += int(((flat >= cut).sum(-1) > k)[real].sum())
        if ours is not None:
            mine = pending.pop(0)
            cuts.near += int((mine != chosen)[real].any(-1).sum())
            assert_near(flat[real], mine[real], cut[real])
            chosen[real] = mine[real]
        return mock.Mock(indices=chosen.view(*scores.shape[:-1], k))

    def forward_with_ties(indexer, *arguments, **keywords):
        with mock.patch.object(torch.Tensor, "topk", topk):
            return forward(indexer, *arguments, **keywords)

    with mock.patch.object(reference_module.GlmMoeDsaIndexer, "forward", forward_with_ties):
        yield cuts


def best_positions(scores: Tensor, topk: int) -> Tensor:
    """Return the positions of each row's highest scores, ascending, equal ones by lowest position; NaN is highest."""
    ranked = scores.nan_to_num(torch.inf, torch.inf, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    return ranked[:, :topk].sort(dim=-1).values


def assert_near(scores: Tensor, chosen: Tensor, cut: Tensor) -> None:
    """Assert that the chosen positions are the best ones up to rounding."""
    finite = scores.masked_fill(scores <= MASKED, 0)
    tolerance = SCORE_TOLERANCE * finite.abs().amax(-1, keepdim=True)
    is_chosen = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, chosen, True)
    assert is_chosen.sum(-1).eq(chosen.shape[1]).all(), "a position is chosen twice"
    assert not (is_chosen & (scores < cut - tolerance)).any(), "a position clearly below the cut is chosen"
    assert not (~is_chosen & (scores > cut + tolerance)).any(), "a position clearly above the cut is missed"


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute with this many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
