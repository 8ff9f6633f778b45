"""The kernel of a layer's projections: its absorbed query, its indexer query, its cache rows."""

from typing import NamedTuple

import numpy as np

from repro.serve.model.kernels.arguments import ATTENTION_WEIGHTS, CUBE, MATRIX, NUMBER, PLACE, named
from repro.serve.model.kernels.compiled import inlined, kernel
from repro.serve.model.kernels.rows import copy, layer_norm, multiply, rms_norm, rotate
from repro.serve.model.panels import PANEL, Floats
from repro.serve.model.weights import AttentionWeights

# `transformers` builds these three norms with its default, not with the config's epsilon.
INNER_NORM_EPSILON = np.float32(1e-6)
BLOCK = 48  # rows whose intermediate results stay in the processor's cache


class ProjectedRows(NamedTuple):
    """Where a layer's projections go; `context.Projected` has the shapes."""

    query: Floats
    index_query: Floats
    index_weights: Floats
    latent: Floats
    index_key: Floats


@inlined
def _spread(source: Floats, rotation: Floats, value: int, query: Floats, index_query: Floats) -> None:
    """Write the heads of one row: attention's turn behind their first `value` numbers, the indexer's at their start."""
    rotary = rotation.shape[0]
    at = 0
    for head in range(query.shape[0]):
        copy(source[at : at + value], query[head])
        rotate(source[at + value : at + value + rotary], rotation, query[head, value:])
        at += query.shape[1]
    for head in range(index_query.shape[0]):
        rotate(source[at : at + rotary], rotation, index_query[head, :rotary])
        copy(source[at + rotary : at + index_query.shape[1]], index_query[head, rotary:])
        at += index_query.shape[1]


@kernel(
    ATTENTION_WEIGHTS,
    NUMBER,
    MATRIX,
    MATRIX,
    named(ProjectedRows, CUBE, CUBE, MATRIX, MATRIX, MATRIX),
    PLACE,
    PLACE,
)
def project(
    weights: AttentionWeights,
    epsilon: np.float32,
    hidden: Floats,
    rotations: Floats,
    out: ProjectedRows,
    first: int,
    last: int,
) -> None:
    """Write the projections of rows [first, last) of `hidden`; `rotations` are the table's rows at their positions."""
    lora, value, rotary = weights.query_norm.shape[0], weights.latent_norm.shape[0], rotations.shape[1]
    index_width, index_heads = out.index_key.shape[1], out.index_weights.shape[1]
    key_at = lora + value + rotary
    normed = np.empty((BLOCK, hidden.shape[1]), np.float32)
    low = np.empty((BLOCK, weights.low.shape[0] * PANEL), np.float32)
    query_low = np.empty((BLOCK, lora), np.float32)
    queries = np.empty((BLOCK, weights.queries.shape[0] * PANEL), np.float32)
    for start in range(first, last, BLOCK):
        rows = min(BLOCK, last - start)
        for row in range(rows):
            rms_norm(hidden[start + row], weights.input_norm, epsilon, normed[row])
        multiply(normed[:rows], weights.low, hidden.shape[1], low)
        for row in range(rows):
            latent, key, source = out.latent[start + row], out.index_key[start + row], low[row]
            rms_norm(source[:lora], weights.query_norm, INNER_NORM_EPSILON, query_low[row])
            rms_norm(source[lora : lora + value], weights.latent_norm, INNER_NORM_EPSILON, latent[:value])
            rotate(source[lora + value : key_at], rotations[start + row], latent[value:])
            key_low = source[key_at : key_at + index_width]
            layer_norm(key_low, weights.index_norm, weights.index_norm_bias, INNER_NORM_EPSILON, key)
            rotate(key, rotations[start + row], key)
            copy(source[key_at + index_width : key_at + index_width + index_heads], out.index_weights[start + row])
        multiply(query_low[:rows], weights.queries, lora, queries)
        for row in range(rows):
            _spread(queries[row], rotations[start + row], value, out.query[start + row], out.index_query[start + row])
