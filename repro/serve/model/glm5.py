"""GLM-5's forward as the leaf functions of a step; they read and write tensors, and own no cache.

For each layer: `project`, write its two cache rows, `select`, `attend`, `feed_forward`. A token's bits are
the same alone and in any batch, in any chunk of a prefill, and in a decode step (tests/serve/model/test_bits.py).
"""

from pathlib import Path

import torch.nn.functional as functional
from torch import Tensor

from repro.serve.model import indexer, mla, moe, projection
from repro.serve.model.config import ModelConfig, ModelConfigError, read_config
from repro.serve.model.context import Context, build_context
from repro.serve.model.indexer import Selected
from repro.serve.model.projection import Projected
from repro.serve.model.rows import pad_rows, rms_norm, rotary_table
from repro.serve.model.weights import CheckpointFolder, ModelWeights, load_weights

# Heads are the rows of the batched products; below this count, or between its multiples, the kernel that
# computes them depends on the batch.
HEAD_TILE = 4


class Glm5:
    """A model's weights and the functions of its forward, fp32, without gradients.

    Layers from `config.num_hidden_layers` on are the MTP layers, where the checkpoint has them.
    """

    def __init__(self, config: ModelConfig, weights: ModelWeights) -> None:
        for name in ("num_attention_heads", "index_n_heads"):
            if getattr(config, name) % HEAD_TILE:
                raise ModelConfigError(f"{name} must be a multiple of {HEAD_TILE}: fewer are not bit-stable")
        self.config = config
        self.weights = weights
        self._rotations = rotary_table(config.qk_rope_head_dim, config.theta, config.max_position_embeddings)

    def context(self, page_table: Tensor, rows: Tensor, positions: Tensor, *, page_size: int) -> Context:
        """Return the batch's layout for all layers of a step; see `build_context`."""
        return build_context(page_table, rows, positions, page_size=page_size, topk=self.config.index_topk)

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the tokens' embeddings, (tokens, hidden)."""
        return self.weights.embeddings.index_select(0, tokens)

    def project(self, layer: int, hidden: Tensor, positions: Tensor) -> Projected:
        """Return what the layer computes of each token alone, its new cache rows among it."""
        rotations = self._rotations.index_select(0, positions)
        return projection.project(self.weights.layers[layer].attention, self.config, hidden, rotations)

    def select(self, layer: int, projected: Projected, index_keys: Tensor, context: Context) -> Selected:
        """Return the slots each token attends to; reads `index_keys`, (slots, index width).

        The step's own keys must be written. A short context is taken whole, without reading the keys.
        """
        return indexer.select(projected, index_keys, context)

    def attend(self, layer: int, projected: Projected, latents: Tensor, selected: Selected) -> Tensor:
        """Return the residual stream plus sparse attention; reads `latents`, (slots, latent width)."""
        return mla.attend(self.weights.layers[layer].attention.output, projected, latents, selected)

    def feed_forward(self, layer: int, hidden: Tensor) -> Tensor:
        """Return the residual stream plus the layer's MLP or experts, (tokens, hidden)."""
        return moe.feed_forward(self.weights.layers[layer].feed_forward, self.config, hidden)

    def normed(self, hidden: Tensor) -> Tensor:
        """Return rows of the last layer's output behind the final norm, (rows, hidden)."""
        return rms_norm(pad_rows(hidden), self.weights.norm, self.config.rms_norm_eps)[: len(hidden)]

    def head(self, normed: Tensor) -> Tensor:
        """Return the logits of rows behind a final norm, the model's or the MTP layer's, (rows, vocabulary)."""
        return functional.linear(pad_rows(normed), self.weights.head)[: len(normed)]

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits of rows of the last layer's output, (rows, vocabulary)."""
        return self.head(self.normed(hidden))


def load_model(folder: Path) -> Glm5:
    """Return the model of a checkpoint folder (config.json, *.safetensors), in fp32.

    Raises ModelConfigError or CheckpointError, which name what is wrong.
    """
    config = read_config(folder / "config.json")
    return Glm5(config, load_weights(config, CheckpointFolder(folder)))
