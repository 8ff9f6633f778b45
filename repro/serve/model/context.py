"""What the leaf functions of a step hand to each other: who is in the batch, a layer's projections, its selection."""

from __future__ import annotations

from dataclasses import dataclass

from repro.base.lazy import torch


@dataclass(frozen=True)
class Context:
    """The batch of one step, for all its layers; valid while its page table is."""

    table: torch.Tensor  # (rows, pages) int64
    rows: torch.Tensor  # (tokens,) int64
    positions: torch.Tensor  # (tokens,) int64
    token_slots: torch.Tensor  # (tokens,) int64, where the token's own latent and index key belong
    page_size: int


@dataclass(frozen=True)
class Projected:
    """One layer's view of the step's tokens; the last two are the rows to be written to the caches."""

    hidden: torch.Tensor  # (tokens, hidden): the residual stream
    query: torch.Tensor  # (tokens, heads, kv_lora + rope): scaled, in the latent's space
    index_query: torch.Tensor  # (tokens, index_heads, index_width)
    index_weights: torch.Tensor  # (tokens, index_heads): both scales folded in
    latent: torch.Tensor  # (tokens, kv_lora + rope)
    index_key: torch.Tensor  # (tokens, index_width)


@dataclass(frozen=True)
class Selected:
    """What each token attends to: slots by ascending position, padded with the token's own slot."""

    slots: torch.Tensor  # (tokens, topk) int64
    counts: torch.Tensor  # (tokens,) int64: slots before the padding


def build_context(page_table: torch.Tensor, rows: torch.Tensor, positions: torch.Tensor, *, page_size: int) -> Context:
    """Return the layout of a batch of tokens, given by their rows and positions, both (tokens,) int64.

    `page_table` is (rows, pages) int64. Tokens of one row are adjacent and ascend by one. Entries of the
    page table behind a row's last page are not used.
    """
    token_slots = page_table[rows, positions // page_size] * page_size + positions % page_size
    return Context(page_table.contiguous(), rows, positions, token_slots, page_size)
