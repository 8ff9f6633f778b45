"""The multi-token-prediction head: from a token's hidden row and the next token, the token after that.

Its decoder layer is the model's layer `config.num_hidden_layers` and runs through the same leaf functions,
with its own cache; this file is what stands around it. The hidden row is the model's **behind the final norm**
(`Glm5.normed`), and the layer runs at that row's position. A draft that follows another one has no hidden row
of the model: it takes that draft's `draft_hidden`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from repro.base.lazy import torch

if TYPE_CHECKING:  # compiles kernels, which numerics = "stamps" does without
    from repro.serve.model.glm5 import Glm5


def draft_input(model: Glm5, hidden: torch.Tensor, next_tokens: torch.Tensor, *, depth: int = 0) -> torch.Tensor:
    """Return the MTP layer's input, (rows, hidden), of each hidden row and the token that followed it."""
    weights = model.weights.mtp[depth]
    tokens = model.norm(model.embed(next_tokens), weights.token_norm)
    rows = model.norm(hidden, weights.hidden_norm)
    return model.product(torch.cat([tokens, rows], dim=-1), weights.combine, hidden.shape[1]).contiguous()


def draft_hidden(model: Glm5, output: torch.Tensor, *, depth: int = 0) -> torch.Tensor:
    """Return the MTP layer's output behind its own norm, (rows, hidden): `Glm5.head` makes logits of it."""
    return model.norm(output, model.weights.mtp[depth].output_norm)
