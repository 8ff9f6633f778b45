"""Collectives between real processes: `torch.distributed`, with gloo on CPUs.

Each process has a rank and a device of its own. All calls of a rank are on one stream, so every process comes to
them in the order in which they were enqueued; that is all the order that the backend needs, here as with NCCL.
"""

from typing import cast

import torch
import torch.distributed as dist

from repro.serve.device.base import Body, Commit, Recorder, Stream
from repro.serve.kv.copier import Copier
from repro.serve.kv.pool import KVPool, Place
from repro.serve.layersplit.collective import CollectiveError, Exchange, Payload
from repro.serve.layersplit.rank import Rank
from repro.serve.layersplit.sequence import touched_pages
from repro.serve.sched.batch import Batch
from repro.serve.worker import Work

Shapes = list[tuple[torch.Size, torch.dtype]]


class TorchCollective:
    """This process's end of a process group (`collective.Collective`); the group must be initialised."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.ranks = dist.get_world_size()
        self.enabled = False

    def broadcast(self, stream: Stream, exchange: Exchange, root: int) -> None:
        """Enqueue a broadcast: the root reads, the others write what it sent."""
        if not self.enabled or self.ranks == 1:
            return

        def body(recorder: Recorder) -> Commit | None:
            payload = self._passed_on(exchange, root, recorder)
            return None if self.rank == root else exchange.write(recorder, [payload])

        self._enqueue(stream, "broadcast", exchange, body)

    def all_gather(self, stream: Stream, exchange: Exchange) -> None:
        """Enqueue an all-gather. Ranks send different numbers of rows, so it is a broadcast from each of them."""

        def body(recorder: Recorder) -> Commit | None:
            return exchange.write(recorder, [self._passed_on(exchange, rank, recorder) for rank in range(self.ranks)])

        self._enqueue(stream, "gather", exchange, body)

    def missing(self) -> str:
        """Return "": the backend itself says who is lost."""
        return ""

    def _passed_on(self, exchange: Exchange, sender: int, recorder: Recorder) -> Payload:
        """Return what the sender has read; its shapes go first.

        Raises CollectiveError when another process is gone, or silent for longer than the group's timeout.
        """
        tensors = exchange.read(recorder) if sender == self.rank else ()
        shapes: list[object] = [[(tensor.shape, tensor.dtype) for tensor in tensors]]
        try:
            dist.broadcast_object_list(shapes, sender)
            if sender != self.rank:
                tensors = tuple(torch.empty(shape, dtype=dtype) for shape, dtype in cast(Shapes, shapes[0]))
            payload = tuple(tensor.contiguous() for tensor in tensors)
            for tensor in payload:
                if tensor.numel():
                    dist.broadcast(tensor, sender)
            return payload
        except RuntimeError as error:
            raise CollectiveError(
                f"rank {self.rank} in the exchange of {exchange.name}, layer {exchange.layer}, step {exchange.step}, "
                f"from rank {sender}: {str(error).splitlines()[0]}; a rank has died or hangs: restart the stack"
            ) from error

    def _enqueue(self, stream: Stream, kind: str, exchange: Exchange, body: Body) -> None:
        stream.enqueue(
            f"split.{kind}_{exchange.name}", body, duration_us=exchange.duration_us, layer=exchange.layer,
            step=exchange.step, requests=exchange.requests, declared=(*exchange.reads, *exchange.writes),
        )  # fmt: skip


class OwnRank:
    """The executor of a process that plans for itself (`worker.Executor`): all processes get the same requests in
    the same order, so all schedulers plan the same steps."""

    description: dict[str, object] = {}

    def __init__(self, rank: Rank, page_tokens: int) -> None:
        self._rank = rank
        self._page_tokens = page_tokens

    @property
    def pools(self) -> dict[Place, KVPool]:
        """Return this rank's pools."""
        return self._rank.pools

    @property
    def copier(self) -> Copier:
        """Return what copies this rank's layers between the tiers."""
        return self._rank.copier

    def launch(self, batch: Batch) -> Work:
        """Enqueue this rank's part of a step."""
        return self._rank.forward.launch(batch, touched_pages(batch, self._page_tokens))
