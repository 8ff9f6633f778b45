"""Who is in the batch: the position and the pages of each token, laid out once for all layers of a step."""

from dataclasses import dataclass

import torch
from torch import Tensor

# Decode rows scored together share the width of their longest context; sorted by length, they waste little,
# and a group's scores stay in the processor's cache.
DECODE_GROUP = 16


@dataclass(frozen=True)
class Segment:
    """Consecutive tokens of one row, each with more context than the selection keeps."""

    first_token: int
    num_tokens: int
    first_position: int
    pages: Tensor  # (pages,) int64, up to the last token's
    slots: Tensor  # (pages * page_size,) int64, by position


@dataclass(frozen=True)
class DecodeGroup:
    """Single tokens of different rows, each with more context than the selection keeps."""

    tokens: Tensor  # (members,) int64, places in the batch
    pages: tuple[Tensor, ...]  # one a member, (pages,) int64, up to its token's page; the last has the most
    slots: Tensor  # (members, pages * page_size) int64, by position
    future: Tensor  # (members, pages * page_size) bool, true behind the token's own position


@dataclass(frozen=True)
class Context:
    """The batch of one step; valid while its page table is.

    Every token is in exactly one of `short_tokens` (context fits the selection, so all of it is taken),
    `segments` and `decode_groups` (must be scored).
    """

    positions: Tensor  # (tokens,) int64
    token_slots: Tensor  # (tokens,) int64, where the token's own latent and index key belong
    counts: Tensor  # (tokens,) int64, selected slots that are real
    page_size: int
    topk: int
    short_tokens: Tensor  # (short,) int64
    short_slots: Tensor  # (short, topk) int64, padded with the token's own slot
    segments: tuple[Segment, ...]
    decode_groups: tuple[DecodeGroup, ...]


def build_context(page_table: Tensor, rows: Tensor, positions: Tensor, *, page_size: int, topk: int) -> Context:
    """Return the layout of a batch of tokens, given by their rows and positions, both (tokens,) int64.

    `page_table` is (rows, pages) int64. Tokens of one row are adjacent and ascend by one. Entries of the
    page table behind a row's last page are not used, but must be pages of the pool.
    """
    offsets = torch.arange(page_size)
    slots = (page_table[:, :, None] * page_size + offsets).flatten(1)
    counts = (positions + 1).clamp(max=topk)
    short_tokens = (positions < topk).nonzero().flatten()
    own = positions[short_tokens, None]
    short_slots = slots[rows[short_tokens, None], torch.minimum(torch.arange(topk), own)]
    segments, singles = _long_runs(page_table, slots, rows, positions, page_size, topk)
    return Context(
        positions=positions,
        token_slots=slots[rows, positions],
        counts=counts,
        page_size=page_size,
        topk=topk,
        short_tokens=short_tokens,
        short_slots=short_slots,
        segments=segments,
        decode_groups=_decode_groups(page_table, slots, rows, positions, singles, page_size),
    )


def _long_runs(
    page_table: Tensor, slots: Tensor, rows: Tensor, positions: Tensor, page_size: int, topk: int
) -> tuple[tuple[Segment, ...], Tensor]:
    """Return the scored runs of several tokens as segments, and the places of the lone scored tokens."""
    long_tokens = (positions >= topk).nonzero().flatten()
    _, lengths = torch.unique_consecutive(rows[long_tokens], return_counts=True)
    ends = lengths.cumsum(0)
    firsts = long_tokens[ends - lengths]
    many = lengths > 1
    segments = []
    run_rows, run_positions = rows[firsts[many]].tolist(), positions[firsts[many]].tolist()
    runs = zip(firsts[many].tolist(), lengths[many].tolist(), run_rows, run_positions, strict=True)
    for first, length, row, position in runs:
        num_pages = (position + length - 1) // page_size + 1
        segments.append(
            Segment(first, length, position, page_table[row, :num_pages], slots[row, : num_pages * page_size])
        )
    return tuple(segments), firsts[~many]


def _decode_groups(
    page_table: Tensor, slots: Tensor, rows: Tensor, positions: Tensor, singles: Tensor, page_size: int
) -> tuple[DecodeGroup, ...]:
    """Return the lone tokens in groups of similar context length."""
    by_length = singles[positions[singles].argsort(stable=True)]
    groups = []
    for tokens in torch.split(by_length, DECODE_GROUP) if len(by_length) else ():
        counts = (positions[tokens] // page_size + 1).tolist()
        width = counts[-1] * page_size
        groups.append(
            DecodeGroup(
                tokens=tokens,
                pages=tuple(page_table[row, :count] for row, count in zip(rows[tokens].tolist(), counts, strict=True)),
                slots=slots[rows[tokens], :width],
                future=torch.arange(width) > positions[tokens, None],
            )
        )
    return tuple(groups)
