"""Admission: a request is checked and queued, and admitted once there is room for it.

Room is counted for the longest answer of every running request, so that none has to be thrown out later. With
`retract` a request is admitted by its prompt alone.
"""

from collections.abc import Iterator

import numpy as np

from repro.base.probe import CacheEvent, LimitEvent
from repro.serve.kv.pool import Pages
from repro.serve.kv.radix.node import Node
from repro.serve.kv.tiers import HiCache
from repro.serve.sched.acceptance import Acceptance
from repro.serve.sched.keys import CacheKeys
from repro.serve.sched.request import Request, TextStream
from repro.serve.sched.rows import Staging
from repro.serve.sched.sampling import Sampled
from repro.serve.sched.state import Arrival, Requests, Vocabulary
from repro.serve.types import GenerateRequest, RejectedError


class Admission:
    """Takes requests in, and gives them their row, their cached prefix and the pages of their prompt."""

    def __init__(self, requests: Requests, cache: HiCache, keys: CacheKeys, vocabulary: Vocabulary) -> None:
        self._requests = requests
        self._config = requests.config
        self._cache = cache
        self._keys = keys
        self._vocabulary = vocabulary

    def submit(self, wire: GenerateRequest) -> Request:
        """Queue a request. Raises RejectedError when it can never run or the queue is full."""
        request = self.register(wire, len(self._requests.waiting))
        if self._cache.storage is not None:
            request.prefetch = self._cache.storage.prefetch(self._keys.hit(request), request.id)
        self._requests.waiting.append(request)
        return request

    def register(self, wire: GenerateRequest, waiting: int) -> Request:
        """Take a request in, behind `waiting` others, without queueing it. Raises RejectedError."""
        self._check(wire, waiting)
        config = self._config
        room = config.context_tokens - len(wire.tokens)
        text = TextStream(self._vocabulary.decode, wire.sampling.stop)
        request = Request(wire, np.asarray(wire.tokens, np.int64), min(wire.sampling.max_tokens, room), text)
        if config.speculative_drafts:
            request.acceptance = Acceptance(config.speculative_drafts)
        self._requests.by_id[wire.id] = request
        self._requests.emit("received", request, {"prompt_tokens": len(wire.tokens)})
        return request

    def _check(self, wire: GenerateRequest, waiting: int) -> None:
        requests, config = self._requests, self._config
        if not wire.tokens:
            raise RejectedError("the prompt has no tokens; send at least one", 400)
        if min(wire.tokens) < 0 or max(wire.tokens) >= self._vocabulary.size:
            raise RejectedError(f"token ids must be between 0 and {self._vocabulary.size - 1}", 400)
        if len(wire.tokens) >= config.context_tokens:
            raise RejectedError(
                f"the prompt has {len(wire.tokens)} tokens, the model's context is {config.context_tokens}; "
                "shorten the prompt",
                400,
            )
        if wire.id in requests.by_id:
            raise RejectedError(f"request id {wire.id} is already running", 400)
        if waiting >= config.waiting_max:
            requests.probes.emit(LimitEvent("waiting_queue", requests.device.now_us, {"max": config.waiting_max}))
            raise RejectedError(f"{config.waiting_max} requests are waiting already; retry later", 503)

    # -- admission ------------------------------------------------------------------------------------

    def admit_next(self, staging: Staging) -> Request | None:
        """Admit the longest waiting request with an ended prefetch; None without such a request, or without room."""
        requests = self._requests
        if not requests.free_rows:
            return None
        request = next((each for each in requests.waiting if self._cache.prefetch_ended(each.prefetch)), None)
        if request is None or not self._admit(request, staging):
            return None
        requests.waiting.remove(request)
        return request

    def _admit(self, request: Request, staging: Staging) -> bool:
        """Give a request its row, its cached prefix and the pages of its prompt; False without room.

        pages   [ device hit | loaded back | own: the rest of the prompt ]
                  pinned with `node`       | given to nobody else
        """
        cache, tree = self._cache, self._cache.tree
        match = cache.match(self._keys.hit(request))
        tree.pin(match.device_node)
        prompt_pages = -(-request.prefill_tokens // self._config.page_tokens)
        if cache.available_pages < self._pages_needed(request, prompt_pages) - len(match.device_pages):
            tree.unpin(match.device_node)
            return False
        node, shared = match.device_node, match.device_pages
        loaded = cache.load_back(match, request.id) if match.host_hit_pages else None
        if loaded is not None:
            tree.pin(match.host_node)
            tree.unpin(node)
            node, shared = match.host_node, np.concatenate((shared, loaded))
        own = cache.allocate(prompt_pages - len(shared), request.id)
        if own is None:
            tree.unpin(node)
            return False
        request.pages = np.concatenate((shared, own)).tolist()
        request.hit_pages = request.shared_pages = len(shared)
        self._place(request, node, len(match.device_pages), staging)
        return True

    def _pages_needed(self, request: Request, prompt_pages: int) -> int:
        """Return how many pages a request takes to its end, with those that are promised to the running ones."""
        running = self._requests.running
        if self._config.retract:
            return prompt_pages + 1 + len(running)  # with less, one would be retracted at once
        return self._pages_of_limit(request) + sum(map(self._still_needed, running))

    def _place(self, request: Request, node: Node, device_hit: int, staging: Staging) -> None:
        """Seat an admitted request behind its hit, whose first `device_hit` pages were on the device."""
        size, requests = self._config.page_tokens, self._requests
        requests.seat(request, node, staging)
        request.computed = request.hit_pages * size
        device_tokens, host_tokens = device_hit * size, (request.hit_pages - device_hit) * size
        if not request.retractions:  # later hits are of what was computed for this request itself
            request.cached_device_tokens, request.cached_host_tokens = device_tokens, host_tokens
        requests.counts.cached_device_tokens += device_tokens
        detail: dict[str, int | float | str] = {
            "row": request.row,
            "device_hit": device_tokens,
            "host_hit": host_tokens,
        }
        if request.prefetch is not None:
            detail["storage_hit"] = request.prefetch.restored * size
        requests.emit("admitted", request, detail)
        if request.hit_pages:
            now_us = requests.device.now_us
            requests.probes.emit(CacheEvent("prefix_hit", request.computed, now_us, request.id, detail))

    def _pages_of_limit(self, request: Request) -> int:
        return -(-request.limit // self._config.page_tokens)

    def _still_needed(self, request: Request) -> int:
        return max(0, self._pages_of_limit(request) - len(request.pages))

    # -- disaggregation -------------------------------------------------------------------------------

    @property
    def promised_pages(self) -> int:
        """Return how many more pages the running and arrived requests may ask for."""
        arrived = (arrival.request for arrival in self._requests.arrived)
        return sum(map(self._still_needed, (*self._requests.running, *arrived)))

    def cached_pages(self, wire: GenerateRequest) -> int:
        """Return how many pages of a prompt are cached, on any tier."""
        tokens = np.asarray(wire.tokens, np.int64)
        match = self._cache.match(self._keys.of(tokens, len(tokens) - 1, wire.cache_key))
        return len(match.device_pages) + match.host_hit_pages

    def adopt(self, request: Request, pages: Pages, first: Sampled) -> None:
        """Decode a registered request whose prompt was computed elsewhere; `pages` hold its rows."""
        request.pages = pages.tolist()
        self._requests.arrived.append(Arrival(request, first))

    def seat_arrived(self, staging: Staging) -> Iterator[Arrival]:
        """Seat arrived requests as long as there are rows, and yield each: its first token is still to be taken."""
        requests = self._requests
        while requests.arrived and requests.free_rows:
            arrival = requests.arrived.popleft()
            request = arrival.request
            root = self._cache.match(()).device_node
            self._cache.tree.pin(root)
            requests.seat(request, root, staging, int(arrival.first.tokens[0]))
            request.computed = len(request.prompt)
            request.planned = 1
            yield arrival
