"""The DSA indexer: score every cached index key, keep the best `topk` positions of each token."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from repro.serve.model.context import Context, DecodeGroup, Segment
from repro.serve.model.projection import Projected

# Tokens of a prefill scored at once: their scores stay in the processor's cache.
SCORE_BLOCK = 64

Rows = npt.NDArray[Any]


@dataclass(frozen=True)
class Selected:
    """What each token attends to: slots by ascending position, padded with the token's own slot."""

    slots: Tensor  # (tokens, topk) int64
    counts: Tensor  # (tokens,) int64: slots before the padding


def select(projected: Projected, index_keys: Tensor, context: Context) -> Selected:
    """Return the slots that each token attends to; `index_keys` is (slots, width) fp32, pages in a row."""
    slots = torch.empty(len(context.positions), context.topk, dtype=torch.int64)
    if len(context.short_tokens):
        slots[context.short_tokens] = context.short_slots
    pages = index_keys.view(-1, context.page_size * index_keys.shape[-1])
    for segment in context.segments:
        _select_segment(projected, pages, segment, context.topk, slots)
    for group in context.decode_groups:
        slots[group.tokens] = _select_group(projected, pages, group, context.topk)
    return Selected(slots, context.counts)


def _select_segment(projected: Projected, pages: Tensor, segment: Segment, topk: int, slots: Tensor) -> None:
    """Write the selected slots of a segment's tokens."""
    width = projected.index_key.shape[-1]
    page_size = pages.shape[1] // width
    keys = pages.index_select(0, segment.pages).view(-1, width)
    for start in range(0, segment.num_tokens, SCORE_BLOCK):
        stop = min(start + SCORE_BLOCK, segment.num_tokens)
        first, last = segment.first_position + start, segment.first_position + stop - 1
        tokens = slice(segment.first_token + start, segment.first_token + stop)
        visible = keys[: (last // page_size + 1) * page_size]
        products = _segment_products(projected.index_query[tokens], visible)
        scores = _weigh(products, projected.index_weights[tokens])
        # Only the columns behind the first token's position can be in a token's future.
        tail = scores[:, first + 1 :]
        future = torch.arange(tail.shape[1]) >= torch.arange(stop - start)[:, None]
        tail.masked_fill_(future, -torch.inf)
        slots[tokens] = segment.slots[best_positions(scores, topk)]


def _segment_products(queries: Tensor, keys: Tensor) -> Tensor:
    """Return query-key products, (tokens, heads, keys), of one row's tokens."""
    tokens, heads, width = queries.shape
    return torch.mm(queries.reshape(tokens * heads, width), keys.t()).view(tokens, heads, -1)


def _select_group(projected: Projected, pages: Tensor, group: DecodeGroup, topk: int) -> Tensor:
    """Return the selected slots of single tokens, (members, topk)."""
    products = _group_products(projected.index_query[group.tokens], pages, group)
    scores = _weigh(products, projected.index_weights[group.tokens])
    scores.masked_fill_(group.future, -torch.inf)
    return group.slots.gather(1, best_positions(scores, topk))


def _group_products(queries: Tensor, pages: Tensor, group: DecodeGroup) -> Tensor:
    """Return query-key products, (members, heads, keys), of single tokens; behind a member's pages anything.

    One member at a time: its gathered keys are multiplied while they are in the processor's cache.
    """
    members, heads, width = queries.shape
    products = queries.new_empty(members, heads, group.slots.shape[1])
    gathered = pages.new_empty(len(group.pages[-1]), pages.shape[1])
    for query, own, product in zip(queries, group.pages, products, strict=True):
        keys = torch.index_select(pages, 0, own, out=gathered[: len(own)]).view(-1, width)
        torch.mm(query, keys.t(), out=product[:, : len(keys)])
    return products


def _weigh(products: Tensor, weights: Tensor) -> Tensor:
    """Return index scores, (tokens, keys): the weighted sum of the positive products, overwritten."""
    return torch.bmm(weights[:, None, :], products.relu_()).squeeze(1)


def best_positions(scores: Tensor, topk: int) -> Tensor:
    """Return the positions of each row's `topk` highest scores, ascending, (rows, topk) int64.

    Equal scores at the cut are taken by lowest position: ReLU makes exact ties, and `torch.topk` takes
    any of them. NaN counts as the highest score, so that a corrupted key does not go unseen.
    """
    values = scores.numpy()
    rows, width = values.shape
    cuts = np.partition(values, width - topk, axis=1)[:, width - topk, None]
    keep = ~(values < cuts)
    if np.count_nonzero(keep) > rows * topk:
        tied = np.count_nonzero(keep, axis=1) > topk
        keep[tied] = _keep_lowest(values[tied], cuts[tied], topk)
    flat = np.flatnonzero(keep).reshape(rows, topk)
    flat -= np.arange(0, rows * width, width)[:, None]
    return torch.from_numpy(flat)


def _keep_lowest(values: Rows, cuts: Rows, topk: int) -> Rows:
    """Return which scores are kept where more than one equals the cut: the first of them."""
    values = np.nan_to_num(values, nan=np.inf, posinf=np.inf, neginf=-np.inf)
    cuts = np.nan_to_num(cuts, nan=np.inf, posinf=np.inf, neginf=-np.inf)
    above, equal = values > cuts, values == cuts
    wanted = topk - np.count_nonzero(above, axis=1, keepdims=True)
    keep: Rows = above | (equal & (np.cumsum(equal, axis=1, dtype=np.int32) <= wanted))
    return keep
