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
Counts = NDArray[np.int32]

# Consecutive tokens of one row that are scored together: their keys are gathered once.
BLOCK = 16
HEAD_TILE = 4
_score_4, _score_1 = score_tile(HEAD_TILE), score_tile(1)
# The cut is found digit by digit of the scores' ranks, highest first.
TOP_SHIFT, TOP_BITS = 21, 11
LOWER_DIGITS = ((10, 11), (0, 10))  # (lowest bit, bits)


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
        to_panel(keys, starts[key : key + 2 * PANEL], width, panel)
        for member in range(tokens):
            if key >= ends[member]:
                continue
            for place in range(key, key + PANEL):
                scores[member, place] = 0
            at, head, last = member * scores.shape[1] + key, (token + member) * heads, (token + member + 1) * heads
            while head + HEAD_TILE <= last:
                _score_4(asked.queries, (head * width, width), panel, columns, asked.weights, scores, (head, at))
                head += HEAD_TILE
            while head < last:
                _score_1(asked.queries, (head * width, width), panel, columns, asked.weights, scores, (head, at))
                head += 1


@inlined
def best(scores: Floats, topk: int, ranks: Ranks, histogram: Counts, positions: Ints) -> None:
    """Write the positions of the `topk` highest scores, ascending; `positions` has one place more than `scores`.

    Equal scores at the cut are taken by lowest position: ReLU makes exact ties. NaN counts as the highest score, so
    that a corrupted key does not go unseen.
    """
    count = scores.shape[0]
    for place in range(count):
        ranks[place] = rank(scores[place])
    for digit in range(1 << TOP_BITS):
        histogram[digit] = 0
    for place in range(count):
        histogram[ranks[place] >> TOP_SHIFT] += 1
    digit, above = _reached(histogram, (1 << TOP_BITS) - 1, topk)
    cut, candidates, wanted = digit << TOP_SHIFT, 0, topk - above
    for place in range(count):
        positions[candidates] = place
        candidates += 1 if ranks[place] >= cut else 0
    for shift, bits in LOWER_DIGITS:
        if candidates == topk:
            return
        # Candidates have ranks from `cut` on; all from cut + (1 << shift + bits) on are taken.
        digit, above = _digit(ranks, positions[:candidates], cut, shift, bits, wanted, histogram)
        wanted -= above
        cut |= digit << shift
        left = 0
        for candidate in range(candidates):
            place = positions[candidate]
            positions[left] = place
            left += 1 if ranks[place] >= cut else 0
        candidates = left
    taken = 0
    for candidate in range(candidates):
        place = positions[candidate]
        each = np.int64(ranks[place])
        is_tied = each == cut and wanted > 0
        wanted -= 1 if is_tied else 0
        positions[taken] = place
        taken += 1 if each > cut or is_tied else 0


@inlined
def _digit(
    ranks: Ranks, candidates: Ints, cut: int, shift: int, bits: int, wanted: int, histogram: Counts
) -> tuple[int, int]:
    """Return the next digit of the rank at which `wanted` are taken, and how many candidates have a higher one.

    Candidates with a higher digit before that one are taken already, and not counted.
    """
    end = 1 << bits
    for digit in range(end):
        histogram[digit] = 0
    for place in candidates:
        each = (np.int64(ranks[place]) - cut) >> shift
        histogram[each if each < end else end] += 1
    return _reached(histogram, end - 1, wanted)


@inlined
def _reached(histogram: Counts, highest: int, wanted: int) -> tuple[int, int]:
    """Return the digit, from the highest down, at which so many are reached, and how many there are above it."""
    digit, above = highest, 0
    while above + histogram[digit] < wanted:
        above += histogram[digit]
        digit -= 1
    return digit, above


@inlined
def _longest_run(rows: Ints) -> int:
    """Return how many tokens are scored together at most; memory for more takes longer to get than to fill."""
    longest, run = 0, 0
    for token in range(rows.shape[0]):
        run = run + 1 if token > 0 and rows[token] == rows[token - 1] else 1
        longest = max(longest, run)
    return min(longest, BLOCK)


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
    scores = np.empty((_longest_run(rows[first:last]), padded), np.float32)
    ranks, histogram = np.empty(padded, np.uint32), np.empty((1 << TOP_BITS) + 1, np.int32)
    chosen = np.empty(padded + 1, np.int64)
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
