"""The kernel of sparse attention over the latent cache: each token reads the rows that were selected for it."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from repro.serve.model.kernels.arguments import CUBE, INT_MATRIX, INTS, MATRIX, PLACE, named
from repro.serve.model.kernels.compiled import inlined, kernel
from repro.serve.model.kernels.gather import fetch, to_panel, to_values
from repro.serve.model.kernels.rows import ONE, exponential, multiply
from repro.serve.model.kernels.vectors import highest, total
from repro.serve.model.panels import PANEL, Floats

BLOCK = 48  # tokens whose mixed values are projected together


class Chosen(NamedTuple):
    """The slots of each token, (tokens, topk), and how many of them are real, (tokens,)."""

    slots: NDArray[np.int64]
    counts: NDArray[np.int64]


@inlined
def _softmax(scores: Floats, count: int, sums: Floats) -> None:
    """Overwrite each row's first `count` scores by their exponentials below the highest, and write their sums."""
    for head in range(scores.shape[0]):
        row = scores[head]
        top = highest(row, 0, count)
        for place in range(count):
            row[place] = exponential(row[place] - top)
        sums[head] = total(row, 0, count)


@kernel(CUBE, CUBE, MATRIX, named(Chosen, INT_MATRIX, INTS), MATRIX, MATRIX, PLACE, PLACE)
def attend(
    output: Floats,
    queries: Floats,
    latents: Floats,
    chosen: Chosen,
    hidden: Floats,
    out: Floats,
    first: int,
    last: int,
) -> None:
    """Write `hidden` plus attention of tokens [first, last); `latents` is (slots, kv_lora + rope).

    The values are the latents' compressed part; `output` maps them, per head, to the hidden size.
    """
    heads, width, topk = queries.shape[1], queries.shape[2], chosen.slots.shape[1]
    value = output.shape[1] // heads
    key_panels = (topk + PANEL - 1) // PANEL
    starts = np.empty(key_panels * PANEL, np.int64)
    keys = np.empty((key_panels, width, PANEL), np.float32)
    values = np.zeros(((value + PANEL - 1) // PANEL, topk, PANEL), np.float32)
    scores = np.empty((heads, key_panels * PANEL), np.float32)
    mixed, sums = np.empty((heads, values.shape[0] * PANEL), np.float32), np.empty(heads, np.float32)
    rows, answers = (
        np.empty((BLOCK, output.shape[1]), np.float32),
        np.empty((BLOCK, output.shape[0] * PANEL), np.float32),
    )
    for start in range(first, last, BLOCK):
        stop = min(start + BLOCK, last)
        for token in range(start, stop):
            count = chosen.counts[token]
            panels = (count + PANEL - 1) // PANEL
            for place in range(panels * PANEL):
                starts[place] = chosen.slots[token, min(place, count - 1)] * width
            for place in range(0, panels * PANEL, 8):
                fetch(latents, starts, place, width)
            for panel in range(panels):
                to_panel(latents, starts[panel * PANEL : (panel + 1) * PANEL], width, keys[panel])
            to_values(latents, starts[:count], value, values)
            multiply(queries[token], keys[:panels], width, scores)
            _softmax(scores, count, sums)
            multiply(scores, values, count, mixed)
            for head in range(heads):
                share = ONE / sums[head]
                for place in range(value):
                    rows[token - start, head * value + place] = mixed[head, place] * share
        multiply(rows[: stop - start], output, output.shape[1], answers)
        for token in range(start, stop):
            for place in range(hidden.shape[1]):
                out[token, place] = hidden[token, place] + answers[token - start, place]
