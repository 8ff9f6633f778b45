"""What a run exercised: a run that never did what its scenario is about proves nothing."""

from collections import deque
from collections.abc import Iterator

import msgspec

from repro.base.probe import CacheEvent, Event, Op, RequestEvent

SPANS_REMEMBERED = 512  # operations that one still running may have overlapped


class Exercised(msgspec.Struct):
    """Counts of one run; the floors of a scenario's [exercise] are compared with these."""

    load_backs: int = 0
    host_hit_tokens: int = 0
    evictions: int = 0
    reads_overlapping_load: int = 0
    transfers: int = 0  # chunks of prompts written from prefill to decode
    transfer_aborts: int = 0  # requests given up while their rows were awaited
    quarantined_tokens: int = 0
    broadcasts: int = 0  # layers' index keys or latents sent by the rank that owns them
    reads_overlapping_broadcast: int = 0  # index reads during a broadcast of latents, which hides its time
    late_results: int = 0  # results of steps for requests that were aborted while they ran
    host_reclaims: int = 0  # host pages taken whose prefix is on the device too
    prefetches: int = 0  # prefixes read from storage to the host
    storage_hit_tokens: int = 0  # tokens that prefetches brought
    storage_misses: int = 0  # prefetches with a page that was gone, damaged or not read
    retractions: int = 0  # requests that gave up their pages because others needed them


# What a cache event counts: (once, by its tokens)
CACHE_COUNTS = {
    "load_back": ("load_backs", "host_hit_tokens"),
    "evict_device": ("evictions", ""),
    "reclaim_host": ("host_reclaims", ""),
    "prefetch": ("prefetches", "storage_hit_tokens"),
    "storage_miss": ("storage_misses", ""),
    "transfer": ("transfers", ""),
    "transfer_abort": ("transfer_aborts", ""),
    "quarantine": ("", "quarantined_tokens"),
}


class ExerciseMeter:
    """Counts while the events pass by.

    An index read overlaps a load when it ran before a copy of its own step's load-back had ended, on any layer:
    then only the guard stands between them.
    """

    def __init__(self) -> None:
        self.counts = Exercised()
        self._copies: deque[tuple[float, float]] = deque(maxlen=SPANS_REMEMBERED)
        self._reads: deque[tuple[float, float]] = deque(maxlen=SPANS_REMEMBERED)
        self._broadcasts: deque[tuple[float, float]] = deque(maxlen=SPANS_REMEMBERED)

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
        counted, tokens = CACHE_COUNTS.get(event.what, ("", ""))
        if counted:
            setattr(self.counts, counted, getattr(self.counts, counted) + 1)
        if tokens:
            setattr(self.counts, tokens, getattr(self.counts, tokens) + event.tokens)


def _overlapping(spans: deque[tuple[float, float]], op: Op) -> Iterator[tuple[float, float]]:
    """Yield the spans of operations, in the order in which they ended, that overlap `op`'s; the last first."""
    for start_us, end_us in reversed(spans):
        if end_us <= op.start_us:
            return
        if start_us < op.end_us:
            yield start_us, end_us
