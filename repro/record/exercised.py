"""What a run exercised: a run that never did what its scenario is about proves nothing."""

from collections import deque
from collections.abc import Iterator

import msgspec

from repro.base.probe import CacheEvent, Event, Op, RequestEvent

LOADS_KEPT = 512  # finished copies that a step still running may have overlapped


class Exercised(msgspec.Struct):
    """Counts of one run; the floors of a scenario's [exercise] are compared with these."""

    load_backs: int = 0
    host_hit_tokens: int = 0
    evictions: int = 0
    reads_overlapping_load: int = 0
    transfers: int = 0  # chunks of prompts written from prefill to decode
    transfer_aborts: int = 0  # requests given up while their rows were awaited
    quarantined_tokens: int = 0
    broadcasts: int = 0  # of a layer's index keys or latents, from the rank that owns it
    reads_overlapping_broadcast: int = 0  # index reads during a broadcast of latents: what hides its time
    late_results: int = 0  # of steps, for requests that were aborted while they ran
    host_reclaims: int = 0  # of host pages whose prefix is on the device too
    prefetches: int = 0  # of prefixes, from storage to the host
    storage_hit_tokens: int = 0  # that came so
    storage_misses: int = 0  # prefetches of which a page was gone, damaged or not read
    retractions: int = 0  # of requests whose pages others needed


class ExerciseMeter:
    """Counts while the events pass by.

    An index read overlaps a load when it ran while a copy of the load-back that its own step depends
    on was still to come or running, on any layer: then only the guard stands between them.
    """

    def __init__(self) -> None:
        self.counts = Exercised()
        self._copies: deque[tuple[float, float]] = deque(maxlen=LOADS_KEPT)
        self._reads: deque[tuple[float, float]] = deque(maxlen=LOADS_KEPT)
        self._broadcasts: deque[tuple[float, float]] = deque(maxlen=LOADS_KEPT)

    def feed(self, event: Event) -> None:
        """Take the next event."""
        if isinstance(event, CacheEvent):
            self._cache(event)
        elif isinstance(event, RequestEvent):
            self.counts.late_results += event.what == "late_result"
            self.counts.retractions += event.what == "retracted"
        elif isinstance(event, Op) and event.name == "loadback.copy_layer":
            self._copies.append((event.start_us, event.end_us))
            # A read that ended before this copy did could only be counted now.
            overlapping = list(_overlapping(self._reads, event))
            for read in overlapping:
                self._reads.remove(read)
            self.counts.reads_overlapping_load += len(overlapping)
        elif isinstance(event, Op) and event.name in ("split.broadcast_latent", "split.broadcast_index"):
            self.counts.broadcasts += 1
            if event.name == "split.broadcast_latent":
                self._broadcasts.append((event.start_us, event.end_us))
        elif isinstance(event, Op) and event.name == "forward.index" and event.accesses:
            self.counts.reads_overlapping_broadcast += next(_overlapping(self._broadcasts, event), None) is not None
            if next(_overlapping(self._copies, event), None) is not None:
                self.counts.reads_overlapping_load += 1
            else:
                self._reads.append((event.start_us, event.end_us))

    def _cache(self, event: CacheEvent) -> None:
        if event.what == "load_back":
            self.counts.load_backs += 1
            self.counts.host_hit_tokens += event.tokens
        elif event.what == "evict_device":
            self.counts.evictions += 1
        elif event.what == "reclaim_host":
            self.counts.host_reclaims += 1
        elif event.what == "prefetch":
            self.counts.prefetches += 1
            self.counts.storage_hit_tokens += event.tokens
        elif event.what == "storage_miss":
            self.counts.storage_misses += 1
        elif event.what == "transfer":
            self.counts.transfers += 1
        elif event.what == "transfer_abort":
            self.counts.transfer_aborts += 1
        elif event.what == "quarantine":
            self.counts.quarantined_tokens += event.tokens


def _overlapping(spans: deque[tuple[float, float]], op: Op) -> Iterator[tuple[float, float]]:
    """Yield the spans of operations, in the order in which they ended, that overlap `op`'s; the last first."""
    for start_us, end_us in reversed(spans):
        if end_us <= op.start_us:
            return
        if start_us < op.end_us:
            yield start_us, end_us
