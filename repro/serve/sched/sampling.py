"""From logits to tokens: greedy, or temperature and top-p with a seed per request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from repro.base.lazy import torch
from repro.base.rng import uniform
from repro.serve.kv.stamps import Words, mix
from repro.serve.types import PromptScore, SamplingParams


@dataclass(frozen=True)
class Sampled:
    """Tokens with their log-probabilities. `top` holds the alternatives where a request asked for them."""

    tokens: NDArray[np.int64]
    logprobs: NDArray[np.float32]
    top: tuple[tuple[tuple[int, float], ...], ...]

    def part(self, start: int, stop: int) -> Sampled:
        """Return the tokens from `start` up to `stop`."""
        return Sampled(self.tokens[start:stop], self.logprobs[start:stop], self.top[start:stop])


@dataclass(frozen=True)
class Chosen:
    """What a step chose: of each sampling member, in order, the tokens at [start, start + count).

    `scored` holds the prompt's tokens that this step has judged, by the member's place in the batch.
    """

    sampled: Sampled
    starts: NDArray[np.int64]
    counts: NDArray[np.int64]
    scored: Mapping[int, tuple[PromptScore, ...]] = field(default_factory=dict)

    def runs(self) -> Iterator[Sampled]:
        """Yield each sampling member's tokens."""
        for start, count in zip(self.starts.tolist(), self.counts.tolist(), strict=True):
            yield self.sampled.part(start, start + count)


def sample(logits: torch.Tensor, rows: list[tuple[SamplingParams, int]]) -> Sampled:
    """Return the next token of each row of `logits`, (rows, vocabulary) fp32.

    A row comes with its sampling parameters and the position of the token to choose: together with
    the request's seed that makes the draw, so it depends on no batch mate.
    """
    logprobs = torch.log_softmax(logits, dim=-1)
    tokens = logits.argmax(dim=-1)
    for row, (params, position) in enumerate(rows):
        if params.temperature > 0:
            draw = uniform(params.seed, "sample", position)
            tokens[row] = _draw(logprobs[row], params.temperature, params.top_p, draw)
    chosen = logprobs.gather(1, tokens[:, None])[:, 0]
    top = tuple(_top(logprobs[row], params.top_logprobs) for row, (params, _) in enumerate(rows))
    return Sampled(tokens.numpy(), chosen.numpy(), top)


def score(logits: torch.Tensor, tokens: Sequence[int], top: int) -> tuple[PromptScore, ...]:
    """Return how likely each of `tokens` is, given logits (tokens, vocabulary) fp32 behind the one before it."""
    logprobs = torch.log_softmax(logits, dim=-1)
    chosen = logprobs.gather(1, torch.tensor(tokens)[:, None])[:, 0].tolist()
    return tuple(
        PromptScore(token, logprob, _top(logprobs[row], top))
        for row, (token, logprob) in enumerate(zip(tokens, chosen, strict=True))
    )


def _draw(logprobs: torch.Tensor, temperature: float, top_p: float, draw: float) -> int:
    ordered, ids = torch.sort((logprobs / temperature).softmax(-1), descending=True, stable=True)
    cumulative = ordered.cumsum(0)
    count = int((cumulative - ordered < top_p).sum())
    place = int((cumulative[:count] <= draw * cumulative[count - 1]).sum()) if count else 0
    return int(ids[min(place, max(count - 1, 0))])


def _top(logprobs: torch.Tensor, count: int) -> tuple[tuple[int, float], ...]:
    if not count:
        return ()
    values, ids = logprobs.topk(count)
    return tuple(zip(ids.tolist(), values.tolist(), strict=True))


def sample_stamps(prefix: Words, vocabulary: int) -> Sampled:
    """Return tokens that are a function of the prefix alone, for numerics = "stamps"."""
    tokens = (mix(prefix) % np.uint64(vocabulary)).astype(np.int64)
    return Sampled(tokens, np.zeros(len(tokens), np.float32), ((),) * len(tokens))
