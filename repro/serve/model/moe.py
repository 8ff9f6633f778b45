"""Feed-forward layers: the dense MLP, and experts chosen by a sigmoid router beside a shared one."""

from itertools import pairwise

import torch
import torch.nn.functional as functional
from torch import Tensor

from repro.serve.model.config import ModelConfig
from repro.serve.model.rows import ROW_TILE, gated_mlp, pad_rows, rms_norm
from repro.serve.model.weights import ExpertWeights, FeedForwardWeights

# Below these many rows, sorting them by expert costs more than it spares (24 to 40 measured).
SORTED_ROWS_MIN = 33


def feed_forward(weights: FeedForwardWeights, config: ModelConfig, hidden: Tensor) -> Tensor:
    """Return the residual stream plus the layer's feed-forward, (tokens, hidden)."""
    normed = rms_norm(pad_rows(hidden), weights.norm, config.rms_norm_eps)
    mixed = gated_mlp(normed, weights.dense.gate_up, weights.dense.down)
    if weights.experts is not None:
        chosen, shares = route(weights.experts, config, normed)
        mixed += mix_experts(weights.experts, normed, chosen, shares, len(hidden))
    return hidden + mixed[: len(hidden)]


def route(weights: ExpertWeights, config: ModelConfig, normed: Tensor) -> tuple[Tensor, Tensor]:
    """Return each token's experts and their shares, both (tokens, experts per token).

    The correction bias decides who is chosen, not what they weigh.
    """
    affinity = functional.linear(normed, weights.router).sigmoid()
    ranked = affinity + weights.correction_bias
    if config.n_group > 1:
        ranked = _within_best_groups(ranked, config)
    chosen = ranked.topk(config.num_experts_per_tok, dim=-1).indices
    shares = affinity.gather(1, chosen)
    if config.norm_topk_prob:
        shares = shares / (shares.sum(dim=-1, keepdim=True) + 1e-20)
    return chosen, shares * config.routed_scaling_factor


def _within_best_groups(ranked: Tensor, config: ModelConfig) -> Tensor:
    """Return the ranking with all but the best groups, by the sum of their two best, put last."""
    grouped = ranked.view(len(ranked), config.n_group, -1)
    strength = grouped.topk(2, dim=-1).values.sum(dim=-1)
    best = strength.topk(config.topk_group, dim=-1).indices
    closed = torch.ones_like(strength, dtype=torch.bool).scatter_(1, best, False)
    return grouped.masked_fill(closed[..., None], -torch.inf).flatten(1)


def mix_experts(weights: ExpertWeights, normed: Tensor, chosen: Tensor, shares: Tensor, tokens: int) -> Tensor:
    """Return the weighted sum of each token's experts, added in the order in which they were chosen.

    Of the rows `normed` the first `tokens` are real; the result of the others may be anything.
    """
    if len(normed) >= SORTED_ROWS_MIN:
        answers = _answers_of_chosen(weights, normed, chosen)
    elif tokens * chosen.shape[1] <= len(weights.router) // 2:
        answers = _answers_of_few(weights, normed, chosen, tokens)
    else:
        answers = _answers_of_all(weights, normed, chosen)
    answers *= shares[..., None]
    mixed = answers[:, 0]
    for place in range(1, chosen.shape[1]):
        mixed = mixed + answers[:, place]
    return mixed


def _answers_of_few(weights: ExpertWeights, normed: Tensor, chosen: Tensor, tokens: int) -> Tensor:
    """Return the chosen experts' outputs, (tokens, experts per token, hidden): all rows through each of them."""
    outer = normed.new_empty(len(weights.router), *normed.shape)
    for expert in sorted(set(chosen[:tokens].flatten().tolist())):
        outer[expert] = gated_mlp(normed, weights.gate_up[expert], weights.down[expert])
    return outer[chosen, torch.arange(len(normed))[:, None]]


def _answers_of_all(weights: ExpertWeights, normed: Tensor, chosen: Tensor) -> Tensor:
    """Return the chosen experts' outputs, (tokens, experts per token, hidden), out of all experts'."""
    experts = weights.gate_up.shape[0]
    inner = functional.linear(normed, weights.gate_up.flatten(0, 1)).view(len(normed), experts, -1)
    gate, up = inner.chunk(2, dim=-1)
    active = functional.silu(gate).mul_(up)
    outer = torch.bmm(active.transpose(0, 1), weights.down.transpose(1, 2))
    return outer[chosen, torch.arange(len(normed))[:, None]]


def _answers_of_chosen(weights: ExpertWeights, normed: Tensor, chosen: Tensor) -> Tensor:
    """Return the chosen experts' outputs, (tokens, experts per token, hidden), one product per expert.

    Tokens are sorted by expert, and each expert's tokens padded to whole tiles:

        | expert 0: tokens ... padding | expert 1: tokens ... padding | ...
    """
    tokens, per_token = chosen.shape
    places, bounds = _places(chosen.flatten(), weights.gate_up.shape[0])
    parts = [(expert, slice(*ends)) for expert, ends in enumerate(pairwise(bounds)) if ends[0] < ends[1]]
    grouped = normed.new_zeros(bounds[-1], normed.shape[1])
    grouped[places] = normed.repeat_interleave(per_token, dim=0)
    inner, outer = normed.new_empty(bounds[-1], weights.gate_up.shape[1]), torch.empty_like(grouped)
    for expert, part in parts:
        torch.mm(grouped[part], weights.gate_up[expert].t(), out=inner[part])
    gate, up = inner.chunk(2, dim=-1)
    active = functional.silu(gate).mul_(up)
    for expert, part in parts:
        torch.mm(active[part], weights.down[expert].t(), out=outer[part])
    return outer[places].view(tokens, per_token, -1)


def _places(experts: Tensor, num_experts: int) -> tuple[Tensor, list[int]]:
    """Return the padded row of each assignment, and where each expert's rows begin (and the last ends)."""
    counts = torch.bincount(experts, minlength=num_experts)
    padded = (counts + (ROW_TILE - 1)) // ROW_TILE * ROW_TILE
    begins, packed_begins = padded.cumsum(0) - padded, counts.cumsum(0) - counts
    order = experts.argsort(stable=True)
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order)) + (begins - packed_begins)[experts[order]]
    return places, [*begins.tolist(), int(padded.sum())]
