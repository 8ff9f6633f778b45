"""The one place where requests give back what they hold, and where they end.

A request's pages, by owner:

    [ hit at admission | put into the tree since | the request's own ]
      0 ...... hit_pages ........... shared_pages ...... len(pages)

`share` moves the second bound: whole pages become the tree's while the request runs on, and its pin moves with
them. `_give_back_pages` returns the rest.
"""

from typing import NamedTuple

import msgspec
import numpy as np

from repro.serve.guards import Guards
from repro.serve.kv.tiers import HiCache
from repro.serve.sched.keys import CacheKeys
from repro.serve.sched.request import Request
from repro.serve.sched.state import Requests
from repro.serve.types import FinishReason, Update


class Ending(NamedTuple):
    """Why an answer ends."""

    reason: FinishReason
    matched: str | int | None = None


ABORTED = Ending("abort")


class Release:
    """Takes rows and pages back, and tells clients how their answers end."""

    def __init__(self, requests: Requests, cache: HiCache, keys: CacheKeys, guards: Guards) -> None:
        self._requests = requests
        self._cache = cache
        self._keys = keys
        self._decisions = guards.decisions

    # -- endings --------------------------------------------------------------------------------------

    def reap(self) -> None:
        """Release the requests that were aborted since the last step."""
        requests = self._requests
        for request in [request for request in requests.waiting if request.aborted]:
            requests.waiting.remove(request)
            self.finish(request, ABORTED)
        for request in [request for request in requests.running if request.aborted]:
            self.release(request)
            self.finish(request, ABORTED)
        for arrival in [arrival for arrival in requests.arrived if arrival.request.aborted]:
            requests.arrived.remove(arrival)
            self._cache.release(np.asarray(arrival.request.pages, np.int32))
            self.finish(arrival.request, ABORTED)

    def release(self, request: Request) -> None:
        """Take back the row and all pages of a running request."""
        self._give_back(request)
        self._requests.leave_row(request)

    def finish(self, request: Request, ending: Ending, last: Update | None = None) -> None:
        """Send the last update to the client of a request that holds nothing any more."""
        request.state = "finished"
        del self._requests.by_id[request.id]
        last = last or Update((), (), request.text.flush(), speculation=request.speculation)
        request.updates.put_nowait(
            msgspec.structs.replace(
                last,
                finish=ending.reason,
                matched_stop=ending.matched,
                prompt_tokens=len(request.prompt),
                completion_tokens=len(request.output),
                cached_device_tokens=request.cached_device_tokens,
                cached_host_tokens=request.cached_host_tokens,
            )
        )
        aborted = ending.reason == "abort"
        self._requests.counts.aborted_requests += aborted
        self._requests.emit("aborted" if aborted else "finished", request, {"tokens": len(request.output)})

    def late_result(self, request: Request) -> None:
        """Drop what a step computed for a request that was released while it ran."""
        if request.aborted:
            self._requests.emit("late_result", request)
        if self._decisions.still_owner(request.aborted):
            self._give_back_pages(request)

    # -- disaggregation -------------------------------------------------------------------------------

    def hold(self, request: Request) -> None:
        """Take the row of a request that decodes elsewhere; its pages stay until `let_go`."""
        self._requests.leave_row(request)
        request.state = "held"
        self._requests.held.append(request)

    def let_go(self, request: Request) -> None:
        """Take back the pages of a held request: they were sent, and no transfer reads them any more."""
        self._requests.held.remove(request)
        self._give_back(request)
        request.state = "finished"
        del self._requests.by_id[request.id]

    # -- pages ----------------------------------------------------------------------------------------

    def retract(self, request: Request) -> None:
        """Take back the row and the pages of a request, except the tree's; it waits, first in the queue."""
        first = self._decisions.kept_by_tree(request.hit_pages, request.shared_pages)
        pages = np.asarray(request.pages, np.int32)
        self._cache.touch(pages, self._requests.counts.steps)
        self._cache.release(pages[first:])
        self._unpin(request)
        self._requests.leave_row(request)
        request.retract()
        self._requests.waiting.appendleft(request)
        self._requests.emit("retracted", request, {"tokens": len(request.output)})

    def share(self, request: Request, stored_tokens: int) -> None:
        """Put a finished prompt, or its stored part, into the tree: others can hit it while this request runs on.

        Does nothing where another request has put the same tokens in meanwhile: a pin of those pages beside the
        request's own would take room that admission may have promised to another.
        """
        config = self._requests.config
        if not config.prefix_cache:
            return
        full = min(stored_tokens, self._keys.stored_max(request)) // config.page_tokens
        keys = self._keys.first(request, full * config.page_tokens)
        if len(self._cache.match(keys).device_pages) > request.shared_pages:
            return
        node, _ = self._cache.insert(keys, np.asarray(request.pages[:full], np.int32))
        self._cache.tree.pin(node)
        self._unpin(request)
        request.node = node
        request.shared_pages = request.counted_pages = full

    def _give_back(self, request: Request) -> None:
        """Take back all pages, and the pin of the cached prefix."""
        self._give_back_pages(request)
        self._unpin(request)

    def _give_back_pages(self, request: Request) -> None:
        """Give whole stored pages to the tree, the rest to the free list."""
        config = self._requests.config
        pages = np.asarray(request.pages, np.int32)
        full, duplicates = 0, pages[:0]
        if config.prefix_cache:
            full = min(request.computed, self._keys.stored_max(request)) // config.page_tokens
            keys = self._keys.first(request, full * config.page_tokens)
            _, duplicates = self._cache.insert(keys, pages[:full], request.counted_pages)
        self._cache.touch(pages, self._requests.counts.steps)
        self._cache.release(np.concatenate((duplicates, pages[full:])))

    def _unpin(self, request: Request) -> None:
        assert request.node is not None, f"{request.id} holds no prefix"
        self._cache.tree.unpin(request.node)
        request.node = None
