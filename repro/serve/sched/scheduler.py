"""Who runs next: admission, batches, and the one place where a request gives back what it held.

`next_batch` plans a step from what the host knows now, which is one step behind the device: the
tokens that step N samples are still unknown when step N+1 is planned. So a request that ended in
step N may ride along in step N+1; its token there is dropped by `commit`.
"""

from collections import deque
from collections.abc import Callable

import numpy as np

from repro.base.probe import CacheEvent, LimitEvent, Probes, RequestEvent, Tokens
from repro.serve.config import EngineConfig
from repro.serve.device.base import Device
from repro.serve.kv.pool import Pages
from repro.serve.kv.radix import Node
from repro.serve.kv.tiers import HiCache
from repro.serve.sched.batch import Batch, Member
from repro.serve.sched.request import Decode, FirstToken, Request, TextStream
from repro.serve.sched.rows import Staging
from repro.serve.sched.sampling import Sampled
from repro.serve.types import FinishReason, GenerateRequest, RejectedError, Update

Prefilled = Callable[[Request, FirstToken], bool]


def _decoded_here(request: Request, first: FirstToken) -> bool:
    return False


class Scheduler:
    """Owner of all requests and of their pages."""

    def __init__(
        self,
        config: EngineConfig,
        device: Device,
        cache: HiCache,
        probes: Probes,
        vocabulary: int,
        decode: Decode,
        eos: frozenset[int],
        prefilled: Prefilled = _decoded_here,
    ) -> None:
        self._config = config
        self._device = device
        self._cache = cache
        self._probes = probes
        self._vocabulary = vocabulary
        self._decode = decode
        self._eos = eos if config.numerics == "tensors" else frozenset()
        self._prefilled = prefilled
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []  # in order of admission
        self.held: list[Request] = []  # prefilled here, their pages still being sent to where they decode
        self._arrived: deque[tuple[Request, FirstToken]] = deque()  # prefilled elsewhere, not seated yet
        self._free_rows = list(range(config.rows - 1, -1, -1))
        self._requests: dict[str, Request] = {}
        self.steps = 0
        self.prompt_tokens = 0
        self.generated_tokens = 0
        self.cached_device_tokens = 0
        self.aborted_requests = 0

    # -- requests come and go ---------------------------------------------------------------------

    def submit(self, wire: GenerateRequest) -> Request:
        """Queue a request. Raises RejectedError when it can never run or the queue is full."""
        request = self.register(wire, len(self.waiting))
        self.waiting.append(request)
        return request

    def register(self, wire: GenerateRequest, waiting: int) -> Request:
        """Take a request in, behind `waiting` others, without queueing it. Raises RejectedError."""
        config = self._config
        if not wire.tokens:
            raise RejectedError("the prompt has no tokens; send at least one", 400)
        if min(wire.tokens) < 0 or max(wire.tokens) >= self._vocabulary:
            raise RejectedError(f"token ids must be between 0 and {self._vocabulary - 1}", 400)
        if len(wire.tokens) >= config.context_tokens:
            raise RejectedError(
                f"the prompt has {len(wire.tokens)} tokens, the model's context is {config.context_tokens}; "
                "shorten the prompt",
                400,
            )
        if wire.id in self._requests:
            raise RejectedError(f"request id {wire.id} is already running", 400)
        if waiting >= config.waiting_max:
            self._probes.emit(LimitEvent("waiting_queue", self._device.now_us, {"max": config.waiting_max}))
            raise RejectedError(f"{config.waiting_max} requests are waiting already; retry later", 503)
        room = config.context_tokens - len(wire.tokens)
        text = TextStream(self._decode, wire.sampling.stop)
        request = Request(wire, np.asarray(wire.tokens, np.int64), min(wire.sampling.max_tokens, room), text)
        self._requests[wire.id] = request
        self._tell("received", request, {"prompt_tokens": len(wire.tokens)})
        return request

    def abort(self, request_id: str) -> None:
        """End a request at whatever stage it is; its pages go back when the scheduler next runs."""
        request = self._requests.get(request_id)
        if request is not None:
            request.aborted = True

    @property
    def busy(self) -> bool:
        """Return whether any request waits or runs."""
        return bool(self.waiting or self.running or self._arrived)

    def reap(self) -> None:
        """Release what was aborted since the last step."""
        for request in [request for request in self.waiting if request.aborted]:
            self.waiting.remove(request)
            self.finish(request, "abort")
        for request in [request for request in self.running if request.aborted]:
            self._release(request)
            self.finish(request, "abort")
        for arrived in [arrived for arrived in self._arrived if arrived[0].aborted]:
            self._arrived.remove(arrived)
            self._cache.release(np.asarray(arrived[0].pages, np.int32))
            self.finish(arrived[0], "abort")

    # -- disaggregation -----------------------------------------------------------------------------

    @property
    def promised_pages(self) -> int:
        """Return how many more pages the running and arrived requests may ask for."""
        return sum(map(self._still_needed, (*self.running, *(request for request, _ in self._arrived))))

    def adopt(self, request: Request, pages: Pages, first: FirstToken) -> None:
        """Decode a registered request whose prompt was computed elsewhere; `pages` hold its rows."""
        request.pages = pages.tolist()
        self._arrived.append((request, first))

    def let_go(self, request: Request) -> None:
        """Take back the pages of a held request: they were sent, and nobody reads them any more."""
        self.held.remove(request)
        self._give_back(request)
        request.state = "finished"
        del self._requests[request.id]

    def _hold(self, request: Request) -> None:
        self._leave(request)
        request.state = "held"
        self.held.append(request)

    def _seat_arrived(self, staging: Staging) -> None:
        while self._arrived and self._free_rows:
            request, first = self._arrived.popleft()
            root = self._cache.match(()).device_node
            self._cache.tree.pin(root)
            self._seat(request, root, staging)
            request.computed = len(request.prompt)
            request.planned = 1
            staging.first_tokens.append((request.row, first.token))
            self._take(request, *first)

    # -- planning a step ----------------------------------------------------------------------------

    def next_batch(self, staging: Staging) -> Batch | None:
        """Return the next step, or None when nothing can run now. Prefill goes before decode."""
        self._seat_arrived(staging)
        prefill = self._plan_prefill(staging)
        members = prefill or self._plan_decode(staging)
        if not members:
            return None
        loads = self._cache.start_loading()
        self.steps += 1
        return Batch(self.steps, bool(prefill), tuple(members), staging, loads)

    def _plan_prefill(self, staging: Staging) -> list[Member]:
        budget = self._config.chunk_tokens
        members: list[Member] = []
        for request in self.running:
            if not request.prefilled and budget:
                members.append(self._chunk(request, budget))
                budget -= members[-1].count
        while budget and self.waiting and self._free_rows and self._admit(self.waiting[0], staging):
            request = self.waiting.popleft()
            members.append(self._chunk(request, budget))
            budget -= members[-1].count
        return members

    def _chunk(self, request: Request, budget: int) -> Member:
        first = request.computed
        count = min(budget, len(request.prompt) - first)
        request.computed += count
        request.planned += request.prefilled
        return Member(request, request.row, first, count, request.prefilled)

    def _plan_decode(self, staging: Staging) -> list[Member]:
        members = []
        for request in self.running:
            if not request.prefilled or request.planned >= request.max_tokens or request.aborted:
                continue
            if not self._grow(request, staging):
                continue
            members.append(Member(request, request.row, request.computed, 1, True))
            request.computed += 1
            request.planned += 1
        return members

    def _grow(self, request: Request, staging: Staging) -> bool:
        """Make sure the next token has a page; False when there is no room right now."""
        place = request.computed // self._config.page_tokens
        if place < len(request.pages):
            return True
        pages = self._cache.allocate(1, request.id)
        if pages is None:
            return False
        staging.pages.append((request.row, place, pages))
        request.pages.extend(pages.tolist())
        return True

    # -- admission ------------------------------------------------------------------------------------

    def _admit(self, request: Request, staging: Staging) -> bool:
        """Give a request its row, its cached prefix and the pages of its prompt; False without room.

        Room is counted for the longest answer of everybody, so nobody has to be thrown out later.
        """
        match = self._cache.match(request.wire.tokens[:-1])
        self._cache.tree.pin(match.device_node)
        total = -(-(len(request.prompt) + request.max_tokens) // self._config.page_tokens)
        promised = sum(self._still_needed(other) for other in self.running)
        if self._cache.available_pages - promised < total - len(match.device_pages):
            self._cache.tree.unpin(match.device_node)
            return False
        node, pages = match.device_node, match.device_pages
        loaded = self._cache.load_back(match, request.id) if match.host_hit_pages else None
        if loaded is not None:
            self._cache.tree.pin(match.host_node)
            self._cache.tree.unpin(node)
            node, pages = match.host_node, np.concatenate((pages, loaded))
        prompt_pages = -(-len(request.prompt) // self._config.page_tokens)
        own = self._cache.allocate(prompt_pages - len(pages), request.id)
        if own is None:
            self._cache.tree.unpin(node)
            return False
        self._place(request, node, len(match.device_pages), pages, own, staging)
        return True

    def _place(
        self, request: Request, node: Node, device_hit: int, shared: Pages, own: Pages, staging: Staging
    ) -> None:
        size = self._config.page_tokens
        request.pages = np.concatenate((shared, own)).tolist()
        self._seat(request, node, staging)
        request.shared_pages = len(shared)
        request.computed = len(shared) * size
        request.cached_device_tokens = device_hit * size
        request.cached_host_tokens = (len(shared) - device_hit) * size
        self.cached_device_tokens += request.cached_device_tokens
        detail: dict[str, int | float | str] = {
            "row": request.row,
            "device_hit": request.cached_device_tokens,
            "host_hit": request.cached_host_tokens,
        }
        self._tell("admitted", request, detail)
        if len(shared):
            self._probes.emit(CacheEvent("prefix_hit", request.computed, self._device.now_us, request.id, detail))

    def _seat(self, request: Request, node: Node, staging: Staging) -> None:
        """Give a request with its pages a row, and tell the device of both."""
        request.state = "running"
        request.row = self._free_rows.pop()
        request.node = node
        staging.pages.append((request.row, 0, np.asarray(request.pages, np.int32)))
        staging.prompts.append((request.row, request.prompt))
        self.running.append(request)
        self.prompt_tokens += len(request.prompt)

    def _still_needed(self, request: Request) -> int:
        total = -(-(len(request.prompt) + request.max_tokens) // self._config.page_tokens)
        return max(0, total - len(request.pages))

    # -- the results of a step ------------------------------------------------------------------------

    def commit(self, batch: Batch, sampled: Sampled | None) -> None:
        """Take a step's tokens: out to the clients, into the cache, and off the device where a request ends."""
        place = 0
        for member in batch.members:
            request = member.request
            if not member.samples:
                continue
            assert sampled is not None
            if request.state == "running" and not request.aborted:
                first = FirstToken(int(sampled.tokens[place]), float(sampled.logprobs[place]), sampled.top[place])
                if batch.prefill and self._prefilled(request, first):
                    self._hold(request)
                else:
                    self._take(request, *first)
            place += 1
        for member in batch.members:
            if member.samples and batch.prefill and member.request.state == "running":
                self._share_prompt(member.request)

    def _take(self, request: Request, token: int, logprob: float, top: tuple[tuple[int, float], ...]) -> None:
        sampling, text = request.sampling, request.text
        request.output.append(token)
        self.generated_tokens += 1
        self._probes.emit(Tokens(request.id, (token,), (logprob,), self._device.now_us))
        if len(request.output) == 1:
            self._tell("first_token", request)
        if token in self._eos and not sampling.ignore_eos:
            self._end(request, token, logprob, top, text.flush(), "stop", token)
            return
        shown, stopped = text.push(token)
        if stopped is not None:
            self._end(request, token, logprob, top, shown, "stop", stopped)
        elif len(request.output) >= request.max_tokens:
            self._end(request, token, logprob, top, shown + text.flush(), "length", None)
        else:
            request.updates.put_nowait(Update((token,), (logprob,), shown, (top,)))

    def _end(
        self,
        request: Request,
        token: int,
        logprob: float,
        top: tuple[tuple[int, float], ...],
        shown: str,
        reason: FinishReason,
        matched: str | int | None,
    ) -> None:
        self._release(request)
        self.finish(request, reason, Update((token,), (logprob,), shown, (top,), matched_stop=matched))

    def _share_prompt(self, request: Request) -> None:
        """Put a finished prompt into the tree, so that others can hit it while this one decodes.

        Not where somebody else has put the same tokens meanwhile: pinning those pages beside one's own
        would take room that `_admit` may have promised to another.
        """
        size = self._config.page_tokens
        full = len(request.prompt) // size
        tokens = request.wire.tokens[: full * size]
        if len(self._cache.match(tokens).device_pages) > request.shared_pages:
            return
        node, _ = self._cache.insert(tokens, np.asarray(request.pages[:full], np.int32))
        self._cache.tree.pin(node)
        assert request.node is not None
        self._cache.tree.unpin(request.node)
        request.node = node
        request.shared_pages = request.counted_pages = full

    def _release(self, request: Request) -> None:
        """Give back the row and all pages."""
        self._give_back(request)
        self._leave(request)

    def _leave(self, request: Request) -> None:
        self.running.remove(request)
        self._free_rows.append(request.row)

    def _give_back(self, request: Request) -> None:
        """Give back all pages: whole stored pages to the tree, the rest to the free list."""
        size = self._config.page_tokens
        stored = min(request.computed, len(request.prompt) + len(request.output))
        full = stored // size if self._config.prefix_cache else 0
        pages = np.asarray(request.pages, np.int32)
        duplicates = pages[:0]
        if full:
            _, duplicates = self._cache.insert(request.tokens[: full * size], pages[:full], request.counted_pages)
        self._cache.touch(pages, self.steps)
        self._cache.release(np.concatenate((duplicates, pages[full:])))
        assert request.node is not None
        self._cache.tree.unpin(request.node)
        request.node = None

    def finish(self, request: Request, reason: FinishReason, last: Update | None = None) -> None:
        """Tell the client that its request is over; the pages are the caller's care."""
        request.state = "finished"
        del self._requests[request.id]
        last = last or Update((), (), request.text.flush())
        request.updates.put_nowait(
            Update(
                last.tokens,
                last.logprobs,
                last.text,
                last.top_logprobs,
                reason,
                last.matched_stop,
                len(request.prompt),
                len(request.output),
                request.cached_device_tokens,
                request.cached_host_tokens,
            )
        )
        self.aborted_requests += reason == "abort"
        self._tell("aborted" if reason == "abort" else "finished", request, {"tokens": len(request.output)})

    def _tell(self, what: str, request: Request, detail: dict[str, int | float | str] | None = None) -> None:
        self._probes.emit(RequestEvent(what, request.id, self._device.now_us, detail or {}))

    # -- invariants -------------------------------------------------------------------------------------

    def check_idle(self, outside_pages: int = 0) -> None:
        """Assert that nothing was lost: free + cached + outside = total, and nobody holds anything else."""
        assert not self.busy and not self.held and not self._cache.pending
        tree, cache = self._cache.tree, self._cache
        tree.check()
        cache.device_pages.check()
        cache.host_pages.check()
        assert tree.protected_pages == 0, f"{tree.protected_pages} pages are pinned by nobody"
        device = cache.device_pages.free_pages + tree.device_pages_total + outside_pages
        assert device == cache.device_pages.capacity_pages, f"{device} device pages accounted for"
        host = cache.host_pages.free_pages + tree.host_pages_total
        assert host == cache.host_pages.capacity_pages, f"{host} host pages accounted for"
        assert len(self._free_rows) == self._config.rows
