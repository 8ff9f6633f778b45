"""What the ranks ask of a communicator: broadcast and all-gather, enqueued on a stream like any operation.

Every rank enqueues the same calls in the same order, as NCCL wants it. A broadcast orders the root before
each receiver and nothing else: it is no barrier, and the root waits for no other rank. An all-gather orders
every rank's start before every rank's end.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from repro.base.errors import HarnessError
from repro.base.lazy import torch
from repro.base.probe import Access
from repro.serve.device.base import Commit, Recorder, Stream

Payload = tuple["torch.Tensor", ...]


class CollectiveError(HarnessError):
    """Ranks called different collectives, or one of them has died."""


@dataclass(frozen=True)
class Exchange:
    """One collective as one rank sees it. `read` runs when the operation starts, what `write` returns when it ends."""

    name: str  # what is sent: "index", "latent", "rows", "tokens"
    layer: int
    step: int
    requests: tuple[str, ...]
    read: Callable[[Recorder], Payload]
    write: Callable[[Recorder, Sequence[Payload]], Commit | None]
    duration_us: float
    reads: tuple[Access, ...] = ()
    writes: tuple[Access, ...] = ()


class Collective(Protocol):
    """One rank's end of a communicator.

    As wrappers of NCCL have it, it is disabled until somebody enables it, and a broadcast on a disabled one
    does nothing and says nothing.
    """

    rank: int
    ranks: int
    enabled: bool

    def broadcast(self, stream: Stream, exchange: Exchange, root: int) -> None:
        """Enqueue a broadcast: the root reads, the others write what it sent."""

    def all_gather(self, stream: Stream, exchange: Exchange) -> None:
        """Enqueue an all-gather: every rank reads, and writes what all ranks sent, in their order."""

    def missing(self) -> str:
        """Return which ranks keep the others waiting, and in which call; "" when none is known to."""
