"""GLM-5's forward as the leaf functions of a step; they read and write tensors, and own no cache.

For each layer: `project`, write its two cache rows, `select`, `attend`, `feed_forward`. A token's bits are
the same alone and in any batch, in any chunk of a prefill, and in a decode step (tests/serve/model/test_bits.py).
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from repro.serve.model.config import ModelConfig, read_config
from repro.serve.model.context import Context, Projected, Selected, build_context
from repro.serve.model.kernels import attend, feed_forward, head, project, select
from repro.serve.model.kernels.threads import over_rows
from repro.serve.model.panels import PANEL, Floats
from repro.serve.model.weights import CheckpointFolder, ModelWeights, load_weights


class Glm5:
    """A model's weights and the functions of its forward, fp32, without gradients.

    Layers from `config.num_hidden_layers` on are the MTP layers, where the checkpoint has them.
    """

    def __init__(self, config: ModelConfig, weights: ModelWeights) -> None:
        self.config = config
        self.weights = weights
        self._epsilon = np.float32(config.rms_norm_eps)
        self._rotations = rotary_table(config.qk_rope_head_dim, config.theta, config.max_position_embeddings)
        self._routing = feed_forward.Routing(
            config.num_experts_per_tok,
            config.n_group,
            config.topk_group,
            config.norm_topk_prob,
            np.float32(config.routed_scaling_factor),
        )

    def context(self, page_table: Tensor, rows: Tensor, positions: Tensor, *, page_size: int) -> Context:
        """Return the batch's layout for all layers of a step; see `build_context`."""
        return build_context(page_table, rows, positions, page_size=page_size)

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the tokens' embeddings, (tokens, hidden)."""
        return self.weights.embeddings.index_select(0, tokens)

    def project(self, layer: int, hidden: Tensor, positions: Tensor) -> Projected:
        """Return what the layer computes of each token alone, its new cache rows among it."""
        config, tokens = self.config, len(hidden)
        rotations = self._rotations[positions.numpy()]
        shapes = (
            (config.num_attention_heads, config.latent_width),
            (config.index_n_heads, config.index_head_dim),
            (config.index_n_heads,),
            (config.latent_width,),
            (config.index_head_dim,),
        )
        out = project.ProjectedRows(*(np.empty((tokens, *shape), np.float32) for shape in shapes))
        weights = self.weights.layers[layer].attention
        over_rows(project.project, tokens, weights, self._epsilon, hidden.numpy(), rotations, out)
        return Projected(hidden, *map(torch.from_numpy, out))

    def select(self, layer: int, projected: Projected, index_keys: Tensor, context: Context) -> Selected:
        """Return the slots each token attends to; reads `index_keys`, (slots, index width).

        The step's own keys must be written. A short context is taken whole, without reading the keys.
        """
        topk, positions = self.config.index_topk, context.positions.numpy()
        asked = select.IndexQueries(projected.index_query.numpy(), projected.index_weights.numpy())
        places = select.Places(context.table.numpy(), context.rows.numpy(), positions)
        slots = np.empty((len(positions), topk), np.int64)
        over_rows(select.select, len(slots), asked, index_keys.numpy(), places, context.page_size, slots)
        return Selected(torch.from_numpy(slots), torch.from_numpy(np.minimum(positions + 1, topk)))

    def attend(self, layer: int, projected: Projected, latents: Tensor, selected: Selected) -> Tensor:
        """Return the residual stream plus sparse attention; reads `latents`, (slots, latent width)."""
        output, hidden = self.weights.layers[layer].attention.output, projected.hidden.numpy()
        chosen = attend.Chosen(selected.slots.numpy(), selected.counts.numpy())
        out = np.empty_like(hidden)
        arguments = output, projected.query.numpy(), latents.numpy(), chosen, hidden, out
        over_rows(attend.attend, len(out), *arguments)
        return torch.from_numpy(out)

    def feed_forward(self, layer: int, hidden: Tensor) -> Tensor:
        """Return the residual stream plus the layer's MLP or experts, (tokens, hidden)."""
        weights, rows = self.weights.layers[layer].feed_forward, hidden.numpy()
        out = np.empty_like(rows)
        over_rows(feed_forward.feed_forward, len(out), weights, self._routing, self._epsilon, rows, out)
        return torch.from_numpy(out)

    def norm(self, rows: Tensor, weight: Floats) -> Tensor:
        """Return rows scaled to unit root mean square, times `weight`, both (..., hidden)."""
        out = np.empty_like(rows.numpy())
        over_rows(head.norm, len(out), weight, self._epsilon, rows.numpy(), out)
        return torch.from_numpy(out)

    def product(self, rows: Tensor, weight: Floats, width: int) -> Tensor:
        """Return rows (rows, inputs) times a weight in panels, (rows, width)."""
        out = np.empty((len(rows), len(weight) * PANEL), np.float32)
        over_rows(head.product, len(out), weight, rows.numpy(), out)
        return torch.from_numpy(out)[:, :width]

    def normed(self, hidden: Tensor) -> Tensor:
        """Return rows of the last layer's output behind the final norm, (rows, hidden)."""
        return self.norm(hidden, self.weights.norm)

    def head(self, normed: Tensor) -> Tensor:
        """Return the logits of rows behind a final norm, the model's or the MTP layer's, (rows, vocabulary)."""
        return self.product(normed, self.weights.head, self.config.vocab_size)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits of rows of the last layer's output, (rows, vocabulary)."""
        return self.head(self.normed(hidden))


def rotary_table(rotary_dim: int, theta: float, positions: int) -> Floats:
    """Return the rotations of each position, (positions, rotary_dim) fp32, cosines and sines by turns.

    Angles are fp32 as in `transformers`; their cosines are taken in fp64, so that the bits do not depend
    on which vector kernel a table entry falls into.
    """
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim
    angles = torch.arange(positions, dtype=torch.float32)[:, None] * (1.0 / theta**exponents)
    pairs = torch.stack([angles.double().cos(), angles.double().sin()], dim=-1)
    table: Floats = pairs.flatten(1).float().numpy()
    return table


def load_model(folder: Path) -> Glm5:
    """Return the model of a checkpoint folder (config.json, *.safetensors), in fp32.

    Raises ModelConfigError or CheckpointError, which name what is wrong.
    """
    config = read_config(folder / "config.json")
    return Glm5(config, load_weights(config, CheckpointFolder(folder)))
