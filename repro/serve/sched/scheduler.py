"""Who runs next: admission, batches, and the one place where a request gives back what it held.

`next_batch` plans a step from what the host knows now, which is one step behind the device: the
tokens that step N samples are still unknown when step N+1 is planned. So a request that ended in
step N may ride along in step N+1; its token there is dropped by `commit`.

With `retract` a request is admitted by its prompt alone, decode steps go between the chunks of a prompt, and when
decode runs out of pages the youngest request gives its own back. It comes again, first in the queue, by prefix hit and
prefill of prompt and answer so far; its answer is the same. After SGLang's `retract_decode`.

With speculation not even their number is known. The device keeps each row's length and lays out the
windows; the host plans for the most that may come, so every step has every request in it. (To plan a
request only once its last step is known would halve the batch.)
"""

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import msgspec
import numpy as np

from repro.base.probe import CacheEvent, LimitEvent, Probes, RequestEvent, Tokens
from repro.serve.config import EngineConfig
from repro.serve.device.base import Device
from repro.serve.guards import Guards
from repro.serve.kv.pool import Pages
from repro.serve.kv.radix.invariants import check_tree
from repro.serve.kv.radix.node import Node
from repro.serve.kv.tiers import HiCache
from repro.serve.sched.batch import Batch, Member
from repro.serve.sched.request import Decode, Request, TextStream
from repro.serve.sched.rows import Seat, Staging
from repro.serve.sched.sampling import Chosen, Sampled
from repro.serve.spec.acceptance import Acceptance
from repro.serve.spec.keys import of_namespace, pair_keys
from repro.serve.types import FinishReason, GenerateRequest, RejectedError, Speculation, Update


class Ending(NamedTuple):
    """Why an answer ends."""

    reason: FinishReason
    matched: str | int | None = None


Prefilled = Callable[[Request, Sampled], bool]


def _decoded_here(request: Request, first: Sampled) -> bool:
    return False


class Scheduler:
    """Owner of all requests and of their pages."""

    def __init__(
        self,
        config: EngineConfig,
        device: Device,
        cache: HiCache,
        guards: Guards,
        probes: Probes,
        vocabulary: int,
        decode: Decode,
        eos: frozenset[int],
        prefilled: Prefilled = _decoded_here,
    ) -> None:
        self._config = config
        self._device = device
        self._cache = cache
        self._guards = guards
        self._probes = probes
        self._vocabulary = vocabulary
        self._decode = decode
        self._eos = eos if config.numerics == "tensors" else frozenset()
        self._prefilled = prefilled
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []  # in order of admission
        self.held: list[Request] = []  # prefilled here, their pages still being sent to where they decode
        self._arrived: deque[tuple[Request, Sampled]] = deque()  # prefilled elsewhere, not seated yet
        self._free_rows = list(range(config.rows - 1, -1, -1))
        self._requests: dict[str, Request] = {}
        self._prefill_last = False  # whether the last step was one of prefill
        self.steps = 0
        self.prompt_tokens = 0
        self.generated_tokens = 0
        self.cached_device_tokens = 0
        self.aborted_requests = 0
        self.verify_steps = 0  # one for each member of each step
        self.accepted_drafts = 0

    # -- requests come and go ---------------------------------------------------------------------

    def submit(self, wire: GenerateRequest) -> Request:
        """Queue a request. Raises RejectedError when it can never run or the queue is full."""
        request = self.register(wire, len(self.waiting))
        if self._cache.storage is not None:
            request.prefetch = self._cache.storage.prefetch(self._prefix_keys(request), request.id)
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
        if config.speculative_drafts:
            request.acceptance = Acceptance(config.speculative_drafts)
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
            self._finish(request, Ending("abort"))
        for request in [request for request in self.running if request.aborted]:
            self._release(request)
            self._finish(request, Ending("abort"))
        for arrived in [arrived for arrived in self._arrived if arrived[0].aborted]:
            self._arrived.remove(arrived)
            self._cache.release(np.asarray(arrived[0].pages, np.int32))
            self._finish(arrived[0], Ending("abort"))

    # -- disaggregation -----------------------------------------------------------------------------

    @property
    def promised_pages(self) -> int:
        """Return how many more pages the running and arrived requests may ask for."""
        return sum(map(self._still_needed, (*self.running, *(request for request, _ in self._arrived))))

    def cached_pages(self, wire: GenerateRequest) -> int:
        """Return how many pages of a prompt are cached, on any tier."""
        match = self._cache.match(self._keys(wire.tokens, len(wire.tokens) - 1, wire.cache_key))
        return len(match.device_pages) + match.host_hit_pages

    def give_up(self, request: Request) -> None:
        """Tell the client of a registered request that it ends here; it has no pages of this scheduler's."""
        self._finish(request, Ending("abort"))

    def adopt(self, request: Request, pages: Pages, first: Sampled) -> None:
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
            self._seat(request, root, staging, int(first.tokens[0]))
            request.computed = len(request.prompt)
            request.planned = 1
            self._take(request, first, verified=False)

    # -- planning a step ----------------------------------------------------------------------------

    def next_batch(self, staging: Staging) -> Batch | None:
        """Return the next step, or None when nothing can run now. Prefill goes before decode."""
        self._seat_arrived(staging)
        members, prefill = self._plan(staging)
        if not members:
            seated = {seat.row for seat in staging.prompts}  # of one-token answers, which have ended already
            assert not any(request.row in seated for request in self.running), "no step tells the device of a row"
            return None
        loads = self._cache.start_loading()
        self.steps += 1
        self._prefill_last = prefill
        drafts = 0 if prefill else self._config.speculative_drafts
        replays = prefill and sum(member.count for member in members) <= self._config.graph_tokens_max
        return Batch(self.steps, prefill, tuple(members), staging, loads, drafts, replays)

    def _plan(self, staging: Staging) -> tuple[list[Member], bool]:
        """Return the members of the next step, and whether it is one of prefill."""
        if self._config.retract and self._prefill_last and (members := self._plan_decode(staging)):
            return members, False
        if members := self._plan_prefill(staging):
            return members, True
        return self._plan_decode(staging), False

    def _plan_prefill(self, staging: Staging) -> list[Member]:
        budget = self._config.chunk_tokens
        members: list[Member] = []
        for request in self.running:
            if not request.prefilled and budget:
                members.append(self._chunk(request, budget))
                budget -= members[-1].count
        while budget and self._free_rows and (first := self._next_waiting()) and self._admit(first, staging):
            self.waiting.remove(first)
            members.append(self._chunk(first, budget))
            budget -= members[-1].count
        return members

    def _next_waiting(self) -> Request | None:
        """Return who has waited longest, of those whose prefetch is not under way."""
        return next((each for each in self.waiting if self._cache.prefetch_ended(each.prefetch)), None)

    def _chunk(self, request: Request, budget: int) -> Member:
        first = request.computed
        count = min(budget, request.prefill_tokens - first)
        request.computed += count
        request.planned += request.prefilled
        return Member(request, request.row, first, count, request.prefilled, request.retractions)

    def _plan_decode(self, staging: Staging) -> list[Member]:
        members = []
        for request in list(self.running):
            if request.state != "running":
                continue  # retracted just now
            if not request.prefilled or request.planned >= request.max_tokens or request.aborted:
                continue
            most = self._config.speculative_drafts
            end = min(request.computed + request.drafted + 1 + most, request.limit)
            if not self._grow(request, end, staging) and not self._make_room(request, end, staging):
                continue
            window = end - request.computed
            members.append(Member(request, request.row, request.computed, window, True, request.retractions))
            request.computed += 1
            request.planned += 1
            request.drafted += most
        return members

    def _grow(self, request: Request, end: int, staging: Staging) -> bool:
        """Make sure that the tokens up to `end` have pages; False when there is no room right now."""
        place = len(request.pages)
        missing = -(-end // self._config.page_tokens) - place
        if missing <= 0:
            return True
        pages = self._cache.allocate(missing, request.id)
        if pages is None:
            return False
        staging.pages.append((request.row, place, pages))
        request.pages.extend(pages.tolist())
        return True

    def _make_room(self, request: Request, end: int, staging: Staging) -> bool:
        """Retract the youngest requests until `request` has its pages; False when it is retracted itself, or waits."""
        while self._config.retract and len(self.running) > 1:
            youngest = self.running[-1]
            self._retract(youngest)
            if youngest is request:
                return False
            if self._grow(request, end, staging):
                return True
        return False

    def _retract(self, request: Request) -> None:
        """Take a request's pages for others, but for those that the tree has; it waits to be admitted again."""
        kept = self._guards.decisions.kept_by_tree(request.hit_pages, request.shared_pages)
        pages = np.asarray(request.pages, np.int32)
        self._cache.touch(pages, self.steps)
        self._cache.release(pages[kept:])
        assert request.node is not None
        self._cache.tree.unpin(request.node)
        self._leave(request)
        request.retract()
        self.waiting.appendleft(request)
        self._tell("retracted", request, {"tokens": len(request.output)})

    # -- admission ------------------------------------------------------------------------------------

    def _admit(self, request: Request, staging: Staging) -> bool:
        """Give a request its row, its cached prefix and the pages of its prompt; False without room.

        Room is counted for the longest answer of everybody, so nobody has to be thrown out later.
        """
        match = self._cache.match(self._prefix_keys(request))
        self._cache.tree.pin(match.device_node)
        prompt_pages = -(-request.prefill_tokens // self._config.page_tokens)
        total = -(-request.limit // self._config.page_tokens)
        promised = sum(self._still_needed(other) for other in self.running)
        if self._config.retract:
            total, promised = prompt_pages + 1, len(self.running)  # one more for each: else it is retracted at once
        if self._cache.available_pages - promised < total - len(match.device_pages):
            self._cache.tree.unpin(match.device_node)
            return False
        node, pages = match.device_node, match.device_pages
        loaded = self._cache.load_back(match, request.id) if match.host_hit_pages else None
        if loaded is not None:
            self._cache.tree.pin(match.host_node)
            self._cache.tree.unpin(node)
            node, pages = match.host_node, np.concatenate((pages, loaded))
        own = self._cache.allocate(prompt_pages - len(pages), request.id)
        if own is None:
            self._cache.tree.unpin(node)
            return False
        self._place(request, node, len(match.device_pages), pages, own, staging)
        return True

    def _prefix_keys(self, request: Request) -> tuple[int, ...]:
        """Return what the longest prefix that a request may hit is cached under: what is judged is computed."""
        wire, most = request.wire, request.prefill_tokens - 1
        judged_from = most if request.replayed else wire.score_from
        hit_max = most if judged_from is None else min(most, judged_from)
        return self._keys(request.tokens, hit_max, wire.cache_key)

    def _place(
        self, request: Request, node: Node, device_hit: int, shared: Pages, own: Pages, staging: Staging
    ) -> None:
        size = self._config.page_tokens
        request.pages = np.concatenate((shared, own)).tolist()
        self._seat(request, node, staging)
        request.hit_pages = request.shared_pages = len(shared)
        request.computed = len(shared) * size
        device_tokens, host_tokens = device_hit * size, (len(shared) - device_hit) * size
        if not request.retractions:  # a client is told of the prompt's, not of what was computed for it before
            request.cached_device_tokens, request.cached_host_tokens = device_tokens, host_tokens
        self.cached_device_tokens += device_tokens
        detail: dict[str, int | float | str] = {
            "row": request.row,
            "device_hit": device_tokens,
            "host_hit": host_tokens,
        }
        if request.prefetch is not None:
            detail["storage_hit"] = request.prefetch.restored * size
        self._tell("admitted", request, detail)
        if len(shared):
            self._probes.emit(CacheEvent("prefix_hit", request.computed, self._device.now_us, request.id, detail))

    def _seat(self, request: Request, node: Node, staging: Staging, first_token: int | None = None) -> None:
        """Give a request with its pages a row, and tell the device of both."""
        request.state = "running"
        request.row = self._free_rows.pop()
        request.node = node
        staging.pages.append((request.row, 0, np.asarray(request.pages, np.int32)))
        staging.prompts.append(Seat(request.row, request.prefill, request.limit, first_token))
        self.running.append(request)
        self.prompt_tokens += len(request.prompt)

    def _still_needed(self, request: Request) -> int:
        total = -(-request.limit // self._config.page_tokens)
        return max(0, total - len(request.pages))

    # -- the results of a step ------------------------------------------------------------------------

    def commit(self, batch: Batch, chosen: Chosen | None) -> None:
        """Take a step's tokens: out to the clients, into the cache, and off the device where a request ends."""
        if chosen is not None:
            self._take_all(batch, chosen)
        if batch.prefill:
            shared = batch.members if self._config.retract else batch.sampling_members
            for member in shared:
                if member.is_current:
                    self._share(member.request, member.end)

    def _take_all(self, batch: Batch, chosen: Chosen) -> None:
        for number, scores in chosen.scored.items():
            if batch.members[number].is_current:
                batch.members[number].request.scores += scores
        for member, run in zip(batch.sampling_members, chosen.runs(), strict=True):
            request = member.request
            if not member.is_current:
                self._late(request)
                continue
            request.drafted -= batch.drafts
            request.computed += len(run.tokens) - 1
            request.planned += len(run.tokens) - 1
            if request.aborted:
                continue
            if batch.prefill and self._prefilled(request, run):
                self._hold(request)
            else:
                self._take(request, run, bool(batch.drafts))

    def _late(self, request: Request) -> None:
        """A step has a result for a request that was released while it ran: drop it."""
        if request.aborted:
            self._tell("late_result", request)
        if self._guards.decisions.still_owner(request.aborted):
            self._free(request)

    def _take(self, request: Request, run: Sampled, verified: bool) -> None:
        """Give a step's tokens to the client, up to the one that ends the answer."""
        shown, ending, count = "", None, 0
        while count < len(run.tokens) and ending is None:
            text, ending = self._push(request, int(run.tokens[count]))
            shown += text
            count += 1
        run = run.part(0, count)
        self.generated_tokens += count
        if verified:
            self._count_verified(request, count)
        tokens, logprobs = tuple(run.tokens.tolist()), tuple(run.logprobs.tolist())
        self._probes.emit(Tokens(request.id, tokens, logprobs, self._device.now_us))
        if len(request.output) == 1:
            self._tell("first_token", request)
        scores, request.scores = tuple(request.scores), []
        update = Update(tokens, logprobs, shown, run.top, speculation=self._speculation(request), scores=scores)
        if ending is None:
            request.updates.put_nowait(update)
        else:
            self._release(request)
            self._finish(request, ending, update)

    def _push(self, request: Request, token: int) -> tuple[str, Ending | None]:
        """Append a token to the answer; return the text that it shows and how it ends the answer, if it does."""
        request.output.append(token)
        if token in self._eos and not request.sampling.ignore_eos:
            return request.text.flush(), Ending("stop", token)
        shown, stopped = request.text.push(token)
        if stopped is not None:
            return shown, Ending("stop", stopped)
        if len(request.output) >= request.max_tokens:
            return shown + request.text.flush(), Ending("length")
        return shown, None

    def _count_verified(self, request: Request, tokens: int) -> None:
        """Count a verify step; drafts behind the end of the answer were right for nobody."""
        assert request.acceptance is not None
        request.acceptance.add(tokens)
        self.verify_steps += 1
        self.accepted_drafts += tokens - 1

    def _speculation(self, request: Request) -> Speculation | None:
        return None if request.acceptance is None else request.acceptance.counts(len(request.output))

    def _share(self, request: Request, stored_tokens: int) -> None:
        """Put a finished prompt, or what is stored of it, into the tree: others can hit it while this one goes on.

        Not where somebody else has put the same tokens meanwhile: pinning those pages beside one's own
        would take room that `_admit` may have promised to another.
        """
        if not self._config.prefix_cache:
            return
        size = self._config.page_tokens
        full = min(stored_tokens, self._keyed_tokens(request)) // size
        keys = self._keys(request.tokens, full * size, request.wire.cache_key)
        if len(self._cache.match(keys).device_pages) > request.shared_pages:
            return
        node, _ = self._cache.insert(keys, np.asarray(request.pages[:full], np.int32))
        self._cache.tree.pin(node)
        assert request.node is not None
        self._cache.tree.unpin(request.node)
        request.node = node
        request.shared_pages = request.counted_pages = full

    def _keyed_tokens(self, request: Request) -> int:
        """Return how many tokens of prompt and answer can be cached: of the draft layer the last has no row yet."""
        return len(request.prompt) + len(request.output) - bool(self._config.speculative_drafts)

    def _keys(self, tokens: tuple[int, ...], count: int, cache_key: str) -> tuple[int, ...]:
        """Return what the first `count` tokens are cached under."""
        drafts = self._config.speculative_drafts
        keys = pair_keys(tokens[: count + 1], self._vocabulary) if drafts else tokens[:count]
        return of_namespace(keys, cache_key)

    def _release(self, request: Request) -> None:
        """Give back the row and all pages."""
        self._give_back(request)
        self._leave(request)

    def _leave(self, request: Request) -> None:
        self.running.remove(request)
        self._free_rows.append(request.row)

    def _give_back(self, request: Request) -> None:
        """Give back all pages, and the cached prefix."""
        self._free(request)
        assert request.node is not None
        self._cache.tree.unpin(request.node)
        request.node = None

    def _free(self, request: Request) -> None:
        """Give whole stored pages to the tree, the rest to the free list."""
        size = self._config.page_tokens
        stored = min(request.computed, self._keyed_tokens(request))
        full = stored // size if self._config.prefix_cache else 0
        pages = np.asarray(request.pages, np.int32)
        duplicates = pages[:0]
        if self._config.prefix_cache:
            keys = self._keys(request.tokens, full * size, request.wire.cache_key)
            _, duplicates = self._cache.insert(keys, pages[:full], request.counted_pages)
        self._cache.touch(pages, self.steps)
        self._cache.release(np.concatenate((duplicates, pages[full:])))

    def _finish(self, request: Request, ending: Ending, last: Update | None = None) -> None:
        request.state = "finished"
        del self._requests[request.id]
        last = last or Update((), (), request.text.flush(), speculation=self._speculation(request))
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
        self.aborted_requests += aborted
        self._tell("aborted" if aborted else "finished", request, {"tokens": len(request.output)})

    def _tell(self, what: str, request: Request, detail: dict[str, int | float | str] | None = None) -> None:
        self._probes.emit(RequestEvent(what, request.id, self._device.now_us, detail or {}))

    # -- invariants -------------------------------------------------------------------------------------

    def check_idle(self, outside_pages: int = 0) -> None:
        """Assert that nothing was lost: free + cached + outside = total, and nobody holds anything else."""
        assert not self.busy and not self.held and not self._cache.pending
        tree, cache = self._cache.tree, self._cache
        check_tree(tree)
        cache.device_pages.check()
        cache.host_pages.check()
        assert tree.protected_pages == 0, f"{tree.protected_pages} pages are pinned by nobody"
        device = cache.device_pages.free_pages + tree.device_pages_total + outside_pages
        assert device == cache.device_pages.num_pages, f"{device} device pages accounted for"
        host = cache.host_pages.free_pages + tree.host_pages_total
        assert host == cache.host_pages.num_pages, f"{host} host pages accounted for"
        assert len(self._free_rows) == self._config.rows
