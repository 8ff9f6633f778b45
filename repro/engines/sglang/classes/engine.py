"""An engine around SGLang's cache: its scheduler's order of events for prefills, and a forward pass per round.

    check events ─> admit (match, load back, allocate) ─> start loading ─> forward ─> wait ─> insert

As SGLang runs without overlap scheduling: the host reads a step's tokens before it plans the next step. An
answer is one token, so a session's history grows by what its trace has recorded.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import torch

from repro.base.probe import LimitEvent, NullProbes, Probes, RequestEvent, Tokens
from repro.engines.sglang import pinned
from repro.engines.sglang.classes.cache import SglangCache
from repro.engines.sglang.classes.forward import BadReads, Forward, Member, Step
from repro.engines.sglang.classes.kernels import Kernels
from repro.engines.sglang.classes.streams import DeviceModule
from repro.engines.sglang.fits import PAGE_TOKENS
from repro.serve.config import EngineConfig
from repro.serve.device.base import Device
from repro.serve.device.cost import PRESETS
from repro.serve.engine import LoadedModel
from repro.serve.kv.pool import Names, PageSets
from repro.serve.kv.stamps import Words, prefix_words
from repro.serve.sched.sampling import sample_stamps
from repro.serve.types import EngineStats, GenerateRequest, RejectedError, ServedModel, Update


@dataclass(eq=False)
class Request:
    """A request, with what SGLang's cache reads of its own `Req`."""

    wire: GenerateRequest
    prefix: Words
    updates: asyncio.Queue[Update] = field(default_factory=asyncio.Queue)
    aborted: bool = False
    slots: Any = None  # (tokens,) int64, once it is admitted
    cached_device_tokens: int = 0
    cached_host_tokens: int = 0
    output_ids: list[int] = field(default_factory=list)
    last_node: Any = None
    req_pool_idx: int | None = None
    cache_protected_len: int = 0  # leading tokens with slots that the tree owns

    @property
    def id(self) -> str:
        """Return its id."""
        return self.wire.id

    @property
    def origin_input_ids(self) -> list[int]:
        """Return the prompt."""
        return list(self.wire.tokens)

    @property
    def extra_key(self) -> str | None:
        """Return the namespace that its prefixes are shared in; None for the common one."""
        return self.wire.cache_key or None

    def pop_committed_kv_cache(self) -> int:
        """Return how many tokens have rows: the prompt's, for an answer's last token is never stored."""
        return len(self.wire.tokens)


class SglangEngine:
    """One engine (`serve.types.ServingEngine`). Start `run` as a task on the device's event loop.

    Raises UsageError where the pinned SGLang is not installed. There may be one at a time in a process.
    """

    def __init__(
        self,
        config: EngineConfig,
        model: LoadedModel,
        device: Device,
        probes: Probes | None = None,
        *,
        awaits_index: bool = True,
    ) -> None:
        self.config = config
        self._model = model
        self._device = device
        self._probes = probes or NullProbes()
        self._cost = PRESETS[config.cost]
        names = Names(PageSets(self._probes))
        module = DeviceModule(device)
        kernels = Kernels(device, module, names.page_sets, self._cost, config.copy_group_pages)
        layers = model.shape.num_hidden_layers
        self.cache = SglangCache(
            config, layers, pinned.load(), kernels, device, names.page_sets, self._probes, awaits_index=awaits_index
        )
        self._forward = Forward(
            device,
            module,
            self._cost,
            kernels,
            self.cache,
            index_topk=model.shape.index_topk,
            fused_store=config.index_store_waits,
        )
        self._bad_reads = BadReads(device, names, self._probes)
        self._waiting: deque[Request] = deque()
        self._requests: dict[str, Request] = {}
        self._wake = asyncio.Event()
        self._stopping = False
        self._counts = EngineStats(*[0] * 13)

    # -- what the server calls (serve.types.ServingEngine) ----------------------------------------

    @property
    def served(self) -> ServedModel:
        """Return the model and its limits; no model computes log-probabilities of prompts."""
        described: dict[str, object] = msgspec.to_builtins(self.config)
        described |= {"model_name": self._model.name, "sglang": pinned.VERSION}
        return ServedModel(self._model.name, self.config.context_tokens, False, described)

    @property
    def memory(self) -> tuple[()]:
        """Return no pool: SGLang's are not the bundled stack's, and scenarios may not corrupt them."""
        return ()

    async def generate(self, request: GenerateRequest) -> AsyncIterator[Update]:
        """Submit and stream. Raises RejectedError before the first update; closing aborts."""
        submitted = self._submit(request)
        self._wake.set()
        try:
            yield await submitted.updates.get()
        finally:
            if self._requests.get(request.id) is submitted:  # another may have the id of one that has ended
                self.abort(request.id)

    def abort(self, request_id: str) -> None:
        """Abort at any stage; unknown ids are ignored."""
        request = self._requests.get(request_id)
        if request is not None:
            request.aborted = True
            self._wake.set()

    async def flush_cache(self) -> bool:
        """Drop all cached prefixes on both tiers; False (and no change) while requests run."""
        while not self._requests and self.cache.pending:
            await self.cache.settle()
        if self._requests:
            return False
        self.cache.drop()
        return True

    def stats(self) -> EngineStats:
        """Return the current counters."""
        host, total = self.cache.controller.mem_pool_host, self.config.device_pages * PAGE_TOKENS
        return msgspec.structs.replace(
            self._counts,
            running_requests=len(self._requests) - len(self._waiting),
            waiting_requests=len(self._waiting),
            device_used=total - self.cache.allocator.available_size(),
            device_total=total,
            host_used=host.size - host.available_size(),
            host_total=host.size,
            load_back_tokens_total=self.cache.load_back_tokens,
            evicted_tokens_total=self.cache.evicted_tokens,
        )

    # -- the loop -----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until `stop`. Raises what SGLang's classes raise."""
        while not (self._stopping and not self._requests):
            self._wake.clear()  # a call from here on ends the next rest
            self.cache.tree.check_hicache_events()
            self._reap()
            self._device.charge(self._cost.plan_us)
            members = self._admit()
            if not members:
                await self._rest()
                continue
            consumer = self.cache.tree.ready_to_load_host_cache()
            step = self._launch(members, consumer)
            await step.done.synchronize("the step's tokens are on the host")
            for request in members:
                self._finish(request)
            await self._device.settle()

    def stop(self) -> None:
        """Let `run` return once the running requests have ended."""
        self._stopping = True
        self._wake.set()

    async def _rest(self) -> None:
        """Nothing can be planned: wait until a transfer unlocks pages, or until a call comes."""
        if self._waiting and self.cache.pending:
            await self.cache.settle()
        elif self._waiting:
            raise AssertionError(f"{self._waiting[0].id} waits, and no transfer is under way that could make room")
        elif not self._stopping:
            await self._wake.wait()

    def _launch(self, requests: list[Request], consumer: int) -> Step:
        self._count(steps_total=1)
        members = [
            Member(each.id, each.prefix, each.slots, each.cached_device_tokens + each.cached_host_tokens)
            for each in requests
        ]
        number = self._counts.steps_total
        step = Step(number, members, self._bad_reads, self._device.event(f"step{number}"))
        self._forward.launch(step, consumer)
        return step

    # -- requests come and go -----------------------------------------------------------------------

    def _submit(self, wire: GenerateRequest) -> Request:
        context, waiting_max = self.config.context_tokens, self.config.waiting_max
        if not 0 < len(wire.tokens) < context:
            raise RejectedError(f"the prompt has {len(wire.tokens)} tokens; send at least 1, fewer than {context}", 400)
        if wire.id in self._requests:
            raise RejectedError(f"request id {wire.id} is already running", 400)
        if len(self._waiting) >= waiting_max:
            self._probes.emit(LimitEvent("waiting_queue", self._device.now_us, {"max": waiting_max}))
            raise RejectedError(f"{waiting_max} requests are waiting already; retry later", 503)
        request = Request(wire, prefix_words(np.asarray(wire.tokens, np.int64)))
        self._requests[wire.id] = request
        self._waiting.append(request)
        self._emit("received", request, {"prompt_tokens": len(wire.tokens)})
        return request

    def _reap(self) -> None:
        """End the waiting requests that were aborted."""
        for request in [request for request in self._waiting if request.aborted]:
            self._waiting.remove(request)
            self._end(request, ())

    def _admit(self) -> list[Request]:
        """Return the requests of the next step, in order of arrival, as long as there are rows and room."""
        admitted: list[Request] = []
        while self._waiting and self.cache.rows.available_size() and self._place(self._waiting[0]):
            admitted.append(self._waiting.popleft())
        return admitted

    def _place(self, request: Request) -> bool:
        """Give a request its cached prefix and slots for the rest of its prompt; False without room."""
        cache, tree, tokens = self.cache, self.cache.tree, request.origin_input_ids
        match = cache.match(tokens, request.extra_key)
        tree.inc_lock_ref(match.last_device_node)
        device_hit = len(match.device_indices)
        room = cache.allocator.available_size() + tree.evictable_size()
        if -(-(len(tokens) - device_hit) // PAGE_TOKENS) * PAGE_TOKENS > room:
            tree.dec_lock_ref(match.last_device_node)
            return False
        loaded, node = cache.load_back(match, request.id) if match.host_hit_length else ((), match.last_device_node)
        tree.inc_lock_ref(node)
        tree.dec_lock_ref(match.last_device_node)
        cached = device_hit + len(loaded)
        new = cache.take(-(-(len(tokens) - cached) // PAGE_TOKENS) * PAGE_TOKENS, request.id)
        assert new is not None, f"{request.id}: there was room for its pages, and SGLang evicted too little"
        shared = (match.device_indices, loaded) if len(loaded) else (match.device_indices,)
        request.slots = torch.cat((*shared, new))[: len(tokens)]
        request.last_node, request.cache_protected_len = node, cached
        request.cached_device_tokens, request.cached_host_tokens = device_hit, len(loaded)
        cache.rows.alloc([request])
        cache.rows.write((request.req_pool_idx, slice(0, len(tokens))), request.slots)
        self._count(prompt_tokens_total=len(tokens), cached_device_tokens_total=device_hit)
        self._emit("admitted", request, {"device_hit": device_hit, "host_hit": len(loaded)})
        return True

    def _finish(self, request: Request) -> None:
        """Take a step's token of a request, and leave its rows to the tree."""
        [token] = sample_stamps(request.prefix[-1:], self._model.shape.vocab_size).tokens.tolist()
        request.output_ids.append(token)
        self.cache.tree.cache_finished_req(request)
        self.cache.rows.free(request)
        if request.aborted:
            self._emit("late_result", request, {})
        self._end(request, () if request.aborted else (token,))

    def _end(self, request: Request, tokens: tuple[int, ...]) -> None:
        del self._requests[request.id]
        if tokens:
            self._emit("first_token", request, {})
            self._probes.emit(Tokens(request.id, tokens, (0.0,), self._device.now_us))
        request.updates.put_nowait(
            Update(
                tokens=tokens,
                logprobs=(0.0,) * len(tokens),
                text=self._model.decode(list(tokens)) if tokens else "",
                finish="length" if tokens else "abort",
                prompt_tokens=len(request.wire.tokens),
                completion_tokens=len(tokens),
                cached_device_tokens=request.cached_device_tokens,
                cached_host_tokens=request.cached_host_tokens,
            )
        )
        self._count(generation_tokens_total=len(tokens), aborted_requests_total=int(not tokens))
        self._emit("finished" if tokens else "aborted", request, {"tokens": len(tokens)})

    def _count(self, **added: int) -> None:
        """Add to counters."""
        sums = {name: getattr(self._counts, name) + count for name, count in added.items()}
        self._counts = msgspec.structs.replace(self._counts, **sums)

    def _emit(self, what: str, request: Request, detail: dict[str, int | float | str]) -> None:
        self._probes.emit(RequestEvent(what, request.id, self._device.now_us, detail))
