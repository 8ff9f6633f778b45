"""The clean decode: what the model answers to the same prompt, alone, on private pages.

The forward is the engine's (`serve/model`), and its bits do not depend on batch or chunking. So one prefill over
prompt and answer checks the answer: while each token is the one that the clean logits choose, a lone decode would
give it too. From the first difference on, the clean answer is decoded token by token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from repro.base.lazy import torch
from repro.serve.kv.pool import KVPool
from repro.serve.sched.sampling import sample
from repro.serve.types import GenerateRequest

if TYPE_CHECKING:  # compiles kernels, which numerics = "stamps" does without
    from repro.serve.model.glm5 import Glm5

CHUNK_TOKENS = 512
PAGE_TOKENS = 64


@dataclass(frozen=True)
class Clean:
    """The clean answer to a request, and where the given answer leaves it."""

    tokens: tuple[int, ...]
    first_difference: int  # index of the first token that differs; -1: none
    logit_gap: float  # between the two best logits there: large for a corruption, small for a near-tie


class CleanDecoder:
    """Decodes one private sequence at a time; a prompt reuses the cached rows of the last one's common beginning."""

    def __init__(self, model: Glm5, context_tokens: int, eos: frozenset[int]) -> None:
        shape = model.config
        self._model = model
        self._eos = eos
        self._pages = -(-(context_tokens + 1) // PAGE_TOKENS)
        widths = {"latent": shape.latent_width, "index": shape.index_head_dim}
        self.pool = KVPool("device", shape.num_hidden_layers, self._pages, PAGE_TOKENS, widths)  # type: ignore[arg-type]
        self._table = torch.arange(self._pages)[None]
        self._known: tuple[int, ...] = ()  # tokens with stored rows

    def check(self, request: GenerateRequest, answer: tuple[int, ...]) -> Clean:
        """Return the clean answer to `request`, given what the server answered."""
        start = len(request.tokens)
        logits = self._run((*request.tokens, *answer), first_logits=start - 1)
        chosen = self._choose(request, logits, start)
        for place, token in enumerate(answer):
            if chosen[place] != token:
                gap = _gap(logits[place])
                tokens = self._decode(request, [*answer[:place], chosen[place]])
                return Clean(tokens, place, gap)
        return Clean(answer, -1, 0.0)

    def answer(self, request: GenerateRequest) -> tuple[int, ...]:
        """Return the clean answer of a lone decode."""
        first = self._choose(request, self._run(request.tokens, len(request.tokens) - 1), len(request.tokens))
        return self._decode(request, first)

    def _decode(self, request: GenerateRequest, answer: list[int]) -> tuple[int, ...]:
        ends = frozenset[int]() if request.sampling.ignore_eos else self._eos
        while len(answer) < request.sampling.max_tokens and answer[-1] not in ends:
            tokens = (*request.tokens, *answer)
            answer.extend(self._choose(request, self._run(tokens, len(tokens) - 1), len(tokens)))
        return tuple(answer)

    def _choose(self, request: GenerateRequest, logits: torch.Tensor, position: int) -> list[int]:
        rows = [(request.sampling, position + place) for place in range(len(logits))]
        tokens: list[int] = sample(logits, rows).tokens.tolist()
        return tokens

    def _run(self, tokens: tuple[int, ...], first_logits: int) -> torch.Tensor:
        """Store the rows of all tokens and return the logits behind each from `first_logits` on."""
        stored = min(_common(self._known, tokens), first_logits)
        parts = []
        for start in range(stored, len(tokens), CHUNK_TOKENS):
            hidden = self._chunk(tokens[start : start + CHUNK_TOKENS], start)
            wanted = hidden[max(0, first_logits - start) :]
            if len(wanted):
                parts.append(self._model.logits(wanted))
        self._known = tokens
        return torch.cat(parts)

    def _chunk(self, tokens: tuple[int, ...], start: int) -> torch.Tensor:
        model, pool = self._model, self.pool
        positions = torch.arange(start, start + len(tokens))
        rows = torch.zeros(len(tokens), dtype=torch.int64)
        pages = (start + len(tokens) - 1) // PAGE_TOKENS + 1
        context = model.context(self._table[:, :pages], rows, positions, page_size=PAGE_TOKENS)
        hidden = model.embed(torch.tensor(tokens))
        for layer in range(pool.layers):
            projected = model.project(layer, hidden, positions)
            pool.flat("latent", layer)[positions] = projected.latent
            pool.flat("index", layer)[positions] = projected.index_key
            selected = model.select(layer, projected, pool.flat("index", layer), context)
            hidden = model.attend(layer, projected, pool.flat("latent", layer), selected)
            hidden = model.feed_forward(layer, hidden)
        return hidden


def _common(known: tuple[int, ...], tokens: tuple[int, ...]) -> int:
    length = min(len(known), len(tokens))
    if known[:length] == tokens[:length]:
        return length
    differing = np.flatnonzero(np.array(known[:length]) != np.array(tokens[:length]))
    return int(differing[0])


def _gap(logits: torch.Tensor) -> float:
    best, second = logits.topk(2).values.tolist()
    return float(best - second)
