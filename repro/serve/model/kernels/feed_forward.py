"""The kernel of the feed-forward layers: the dense MLP, and experts chosen by a sigmoid router beside a shared one."""

from typing import NamedTuple

import numpy as np

from repro.serve.model.kernels.arguments import FEED_FORWARD_WEIGHTS, FLAG, MATRIX, NUMBER, PLACE, named
from repro.serve.model.kernels.compiled import inlined, kernel
from repro.serve.model.kernels.rows import ONE, activate, copy, exponential, multiply, rms_norm
from repro.serve.model.kernels.vectors import fma
from repro.serve.model.panels import PANEL, Floats
from repro.serve.model.weights import FeedForwardWeights

BLOCK = 96  # rows that go through the experts together
SMALL = np.float32(1e-20)
MINUS_INFINITY = np.float32(-np.inf)


class Routing(NamedTuple):
    """How many experts a token has, out of how many of the groups, and what their shares sum up to."""

    per_token: int
    groups: int
    groups_kept: int
    is_normalised: bool
    scaling: np.float32


@inlined
def _highest(values: Floats) -> int:
    """Return the place of the highest value, the first of equal ones."""
    best = 0
    for place in range(1, values.shape[0]):
        if values[place] > values[best]:
            best = place
    return best


@inlined
def _close_groups(ranked: Floats, routing: Routing) -> None:
    """Put all experts but those of the best groups, by the sum of their two best, last."""
    size = ranked.shape[0] // routing.groups
    strengths = np.empty(routing.groups, np.float32)
    for group in range(routing.groups):
        members = ranked[group * size : (group + 1) * size].copy()
        best = _highest(members)
        strengths[group] = members[best]
        if size > 1:
            members[best] = MINUS_INFINITY
            strengths[group] += members[_highest(members)]
    is_open = np.zeros(routing.groups, np.bool_)
    for _ in range(routing.groups_kept):
        best = _highest(strengths)
        is_open[best] = True
        strengths[best] = MINUS_INFINITY
    for expert in range(ranked.shape[0]):
        if not is_open[expert // size]:
            ranked[expert] = MINUS_INFINITY


@inlined
def _route(affinity: Floats, bias: Floats, routing: Routing, shares: Floats) -> None:
    """Write each expert's share of a token, negative for those that were not chosen; `affinity` holds logits.

    The correction bias decides who is chosen, not what they weigh.
    """
    experts = bias.shape[0]
    ranked = np.empty(experts, np.float32)
    for expert in range(experts):
        affinity[expert] = ONE / (ONE + exponential(-affinity[expert]))
        ranked[expert] = affinity[expert] + bias[expert]
        shares[expert] = -ONE
    if routing.groups > 1:
        _close_groups(ranked, routing)
    chosen = np.empty(routing.per_token, np.int64)
    whole = SMALL
    for place in range(routing.per_token):
        expert = _highest(ranked)
        chosen[place] = expert
        whole += affinity[expert]
        ranked[expert] = MINUS_INFINITY
    for place in range(routing.per_token):
        share = affinity[chosen[place]]
        if routing.is_normalised:
            share = share / whole
        shares[chosen[place]] = share * routing.scaling


@kernel(
    FEED_FORWARD_WEIGHTS,
    named(Routing, PLACE, PLACE, PLACE, FLAG, NUMBER),
    NUMBER,
    MATRIX,
    MATRIX,
    PLACE,
    PLACE,
)
def feed_forward(
    weights: FeedForwardWeights,
    routing: Routing,
    epsilon: np.float32,
    hidden: Floats,
    out: Floats,
    first: int,
    last: int,
) -> None:
    """Write the residual stream plus the layer's feed-forward, rows [first, last) of (tokens, hidden).

    A token's experts are added in the order of their numbers, the shared one first.
    """
    width, experts = hidden.shape[1], weights.correction_bias.shape[0]
    normed, grouped = np.empty((BLOCK, width), np.float32), np.empty((BLOCK, width), np.float32)
    mixed = np.empty((BLOCK, weights.down.shape[0] * PANEL), np.float32)
    logits = np.empty((BLOCK, weights.router.shape[0] * PANEL), np.float32)
    shares, members = np.empty((BLOCK, experts), np.float32), np.empty(BLOCK, np.int64)
    inner = np.empty((BLOCK, weights.gate_up.shape[0] * PANEL), np.float32)
    active = np.empty((BLOCK, weights.down.shape[1]), np.float32)
    expert_inner = np.empty((BLOCK, weights.expert_gate_up.shape[1] * PANEL), np.float32)
    expert_active = np.empty((BLOCK, weights.expert_down.shape[2]), np.float32)
    for start in range(first, last, BLOCK):
        rows = min(BLOCK, last - start)
        for row in range(rows):
            rms_norm(hidden[start + row], weights.norm, epsilon, normed[row])
        multiply(normed[:rows], weights.gate_up, width, inner)
        activate(inner, active[:rows])
        multiply(active[:rows], weights.down, active.shape[1], mixed)
        for row in range(rows):
            for place in range(width):
                out[start + row, place] = hidden[start + row, place] + mixed[row, place]
        if experts == 0:
            continue
        multiply(normed[:rows], weights.router, width, logits)
        for row in range(rows):
            _route(logits[row], weights.correction_bias, routing, shares[row])
        for expert in range(experts):
            count = 0
            for row in range(rows):
                if not shares[row, expert] < 0:
                    members[count] = row
                    copy(normed[row], grouped[count])
                    count += 1
            multiply(grouped[:count], weights.expert_gate_up[expert], width, expert_inner)
            activate(expert_inner, expert_active[:count])
            multiply(expert_active[:count], weights.expert_down[expert], expert_active.shape[1], mixed)
            for member in range(count):
                row = members[member]
                for place in range(width):
                    to = start + row
                    out[to, place] = fma(shares[row, expert], mixed[member, place], out[to, place])
