"""The kernel of the DSA indexer: score every cached index key, keep the best `topk` positions of each token."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from repro.serve.model.kernels.arguments import CUBE, INT_MATRIX, INTS, MATRIX, PLACE, named
from repro.serve.model.kernels.compiled import inlined, kernel
from repro.serve.model.kernels.gather import to_panel
from repro.serve.model.kernels.vectors import rank, score_tile
from repro.serve.model.panels import PANEL, Floats

Ints = NDArray[np.int64]
Ranks = NDArray[np.uint32]

# Consecutive tokens of one row that are scored together: their keys are gathered once.
BLOCK = 16
HEAD_TILE = 4
_score_4, _score_1 = score_tile(HEAD_TILE), score_tile(1)
# The cut is found digit by digit of the scores' ranks, highest first.
DIGITS = ((21, 11), (10, 11), (0, 10))  # (lowest bit, bits)


class IndexQueries(NamedTuple):
    """Of each token: what it asks the indexer."""

    queries: Floats  # (tokens, index heads, width)
    weights: Floats  # (tokens, index heads)


class Places(NamedTuple):
    """Of each token: its row in the page table, and its position."""

    table: Ints  # (rows, pages)
    rows: Ints
    positions: Ints


@inlined
def _score(asked: IndexQueries, keys: Floats, starts: Ints, token: int, ends: Ints, scores: Floats) -> None:
    """Write the scores of consecutive tokens, from `token` on, for the keys that begin at `starts`.

    Token i scores the keys before `ends[i]`, the last token most; `scores` is (tokens, whole panels).
    """
    tokens, width, heads = ends.shape[0], keys.shape[1], asked.weights.shape[1]
    panel, columns = np.empty((width, PANEL), np.float32), (0, PANEL, width)
    for key in range(0, ends[tokens - 1], PANEL):
        to_panel(keys, starts[key : key + PANEL], width, panel)
        for member in range(tokens):
            if key >= ends[member]:
                continue
            scores[member, key : key + PANEL] = 0
            at, head, last = member * scores.shape[1] + key, (token + member) * heads, (token + member + 1) * heads
            while head + HEAD_TILE <= last:
                _score_4(asked.queries, (head * width, width), panel, columns, asked.weights, scores, (head, at))
                head += HEAD_TILE
            while head < last:
                _score_1(asked.queries, (head * width, width), panel, columns, asked.weights, scores, (head, at))
                head += 1


@inlined
def _cut(ranks: Ranks, topk: int, histogram: NDArray[np.int32]) -> tuple[int, int]:
    """Return the rank of the `topk`-th highest, and how many of that rank are among the highest `topk`."""
    cut, fixed, wanted = 0, 0, topk
    for shift, bits in DIGITS:
        digits = (1 << bits) - 1
        histogram[:] = 0
        for each in ranks:
            if (each & fixed) == cut:
                histogram[(each >> shift) & digits] += 1
        digit = digits
        while histogram[digit] < wanted:
            wanted -= histogram[digit]
            digit -= 1
        cut |= digit << shift
        fixed |= digits << shift
    return cut, wanted


@inlined
def best(scores: Floats, topk: int, ranks: Ranks, histogram: NDArray[np.int32], positions: Ints) -> None:
    """Write the positions of the `topk` highest scores, ascending; `positions` has one place more.

    Equal scores at the cut are taken by lowest position: ReLU makes exact ties. NaN counts as the highest score, so
    that a corrupted key does not go unseen.
    """
    count = scores.shape[0]
    for place in range(count):
        ranks[place] = rank(scores[place])
    cut, ties = _cut(ranks[:count], topk, histogram)
    taken = 0
    for place in range(count):
        each = np.int64(ranks[place])
        is_tied = each == cut and ties > 0
        ties -= 1 if is_tied else 0
        positions[taken] = place
        taken += 1 if each > cut or is_tied else 0


@kernel(
    named(IndexQueries, CUBE, MATRIX),
    MATRIX,
    named(Places, INT_MATRIX, INTS, INTS),
    PLACE,
    INT_MATRIX,
    PLACE,
    PLACE,
)
def select(
    asked: IndexQueries, keys: Floats, places: Places, page_size: int, slots: Ints, first: int, last: int
) -> None:
    """Write the slots, (tokens, topk), that tokens [first, last) attend to; `keys` is (slots, width).

    A context that fits is taken whole, without its keys being read, and padded with the token's own slot.
    """
    topk = slots.shape[1]
    positions, rows = places.positions, places.rows
    longest = 0
    for token in range(first, last):
        longest = max(longest, positions[token] + 1)
    padded = (longest + PANEL - 1) // PANEL * PANEL
    context, starts = np.empty(longest + page_size, np.int64), np.empty(padded, np.int64)
    scores = np.empty((BLOCK, padded), np.float32)
    ranks, histogram = np.empty(padded, np.uint32), np.empty(1 << 11, np.int32)
    chosen = np.empty(topk + 1, np.int64)
    token = first
    while token < last:
        stop = token + 1
        while stop < last and stop < token + BLOCK and rows[stop] == rows[token]:
            stop += 1
        end = positions[stop - 1] + 1
        for page in range((end + page_size - 1) // page_size):
            for offset in range(page_size):
                context[page * page_size + offset] = places.table[rows[token], page] * page_size + offset
        while token < stop and positions[token] < topk:
            for place in range(topk):
                slots[token, place] = context[min(place, positions[token])]
            token += 1
        if token == stop:
            continue
        for place in range((end + PANEL - 1) // PANEL * PANEL):
            starts[place] = context[min(place, end - 1)] * keys.shape[1]
        _score(asked, keys, starts, token, positions[token:stop] + 1, scores)
        for member in range(stop - token):
            best(scores[member, : positions[token + member] + 1], topk, ranks, histogram, chosen)
            for place in range(topk):
                slots[token + member, place] = context[chosen[place]]
        token = stop
