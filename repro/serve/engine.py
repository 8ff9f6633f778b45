"""The bundled GLM-5 stack: one engine over one device.

    generate() ─> Admission.submit ─> waiting ─> next_batch ─> Forward.launch ─> commit ─> updates

`run` overlaps: while the device computes step N, the host plans and enqueues step N+1, and only
then reads the samples of step N.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from repro.base.errors import UsageError
from repro.base.probe import NullProbes, Probes
from repro.serve.config import EngineConfig
from repro.serve.device.base import Device, Event
from repro.serve.device.cost import PRESETS
from repro.serve.guards import Guards
from repro.serve.guards.waits import store_after_load
from repro.serve.kv.pool import KVPool, Names, PageSets
from repro.serve.kv.tiers import HiCache
from repro.serve.model.config import ModelConfig, read_config
from repro.serve.sched.batch import Batch
from repro.serve.sched.request import Decode, Request
from repro.serve.sched.rows import StagingRing
from repro.serve.sched.sampling import Sampled
from repro.serve.sched.scheduler import Scheduler
from repro.serve.sched.state import Vocabulary
from repro.serve.types import EngineStats, GenerateRequest, ServedModel, Update
from repro.serve.worker import Executor, Work, Worker

if TYPE_CHECKING:
    from repro.serve.model.glm5 import Glm5

BUNDLED_CHECKPOINT = Path(__file__).parent / "model" / "checkpoint"


@dataclass(frozen=True)
class LoadedModel:
    """What an engine serves. `weights` is None under numerics = "stamps"."""

    name: str
    shape: ModelConfig
    weights: "Glm5 | None"
    decode: Decode
    eos: frozenset[int]


def checkpoint_folder(config: EngineConfig) -> Path:
    """Return the folder of the checkpoint that `config` names."""
    return BUNDLED_CHECKPOINT if config.model == "bundled" else Path(config.model)


def load(config: EngineConfig, decode: Decode) -> LoadedModel:
    """Return the model that `config` names; the weights are read unless only stamps move."""
    folder = checkpoint_folder(config)
    shape = read_config(folder / "config.json")
    weights = None
    if config.numerics == "tensors":
        from repro.serve.model.glm5 import load_model  # compiles kernels, which stamps do without

        weights = load_model(folder)
    name = "glm5-tiny" if config.model == "bundled" else folder.name
    return LoadedModel(name, shape, weights, decode, frozenset(shape.end_tokens))


def _check_drafts(config: EngineConfig, model: LoadedModel) -> None:
    """Raise UsageError when speculation lacks its layer."""
    missing = None
    if not model.shape.num_nextn_predict_layers:
        missing = "config.json has num_nextn_predict_layers = 0"
    elif model.weights is not None and not model.weights.weights.mtp:
        missing = f"the checkpoint has no tensors model.layers.{model.shape.num_hidden_layers}.*"
    if config.speculative_drafts and missing:
        raise UsageError(
            f"speculative_drafts = {config.speculative_drafts}: model {model.name} has no MTP layer to draft with "
            f"({missing}); set speculative_drafts = 0"
        )


def guards_of(config: EngineConfig, guards: Guards | None) -> Guards:
    """Return a stack's guards: the correct ones if none are given, with the store that `config` asks for."""
    guards = guards or Guards()
    return guards.replaced(before_index_store=store_after_load) if config.index_store_waits else guards


class Role:
    """What an engine does besides serving: nothing here. `pd.prefill` and `pd.decode` override these hooks."""

    @property
    def busy(self) -> bool:
        """Return whether work is in progress that the scheduler does not know of."""
        return False

    @property
    def outside_pages(self) -> int:
        """Return how many device pages are neither free nor the scheduler's nor the tree's."""
        return 0

    def between_steps(self) -> None:
        """Act before the next step is planned; pages may have become free."""

    def step_launched(self, batch: Batch, done: Event) -> None:
        """Take note of a step that was enqueued; `done` is recorded behind it."""

    def prefilled(self, request: Request, first: Sampled) -> bool:
        """Take over a request whose prompt is computed and return True; False: this engine decodes it."""
        return False


NO_ROLE = Role()


class Engine:
    """One serving engine (`types.ServingEngine`). Start `run` as a task on the device's event loop.

    Raises UsageError when drafts are asked for and the model has no layer that makes them.
    """

    def __init__(
        self,
        config: EngineConfig,
        model: LoadedModel,
        device: Device,
        guards: Guards | None = None,
        probes: Probes | None = None,
        *,
        names: Names | None = None,
        role: Role = NO_ROLE,
        executor: Executor | None = None,
    ) -> None:
        self.config = config
        self._model = model
        self._device = device
        self._probes = probes or NullProbes()
        self._role = role
        names = names or Names(PageSets(self._probes))
        guards = guards_of(config, guards)
        _check_drafts(config, model)
        shape = model.shape
        self._cost = PRESETS[config.cost]
        self._executor = executor or Worker(config, shape, model.weights, device, guards, names, self._probes)
        pools = self._executor.pools
        self.pool = pools["device"]
        self.cache = HiCache(config, device, self._executor.copier, pools, names, guards, self._probes)
        self.scheduler = Scheduler(
            config,
            device,
            self.cache,
            guards,
            self._probes,
            Vocabulary(shape.vocab_size, model.decode, model.eos),
            role.prefilled,
        )
        self._staging = StagingRing(device, guards, config.staging_buffers)
        self._wake = asyncio.Event()
        self._stopping = False

    # -- types.ServingEngine, for the server -------------------------------------------------------

    @property
    def served(self) -> ServedModel:
        """Return the model and its limits. Ranks that share a step gather no log-probabilities of prompts."""
        described: dict[str, object] = msgspec.to_builtins(self.config)
        described |= {"model_name": self._model.name, "max_total_num_tokens": self._total_tokens("device")}
        scores_prompts = self.config.layersplit is None
        return ServedModel(
            self._model.name, self.config.context_tokens, scores_prompts, described | self._executor.description
        )

    async def generate(self, request: GenerateRequest) -> AsyncIterator[Update]:
        """Submit and stream. Raises RejectedError before the first update; closing aborts."""
        submitted = self.scheduler.admission.submit(request)
        self._wake.set()
        try:
            while True:
                update = await submitted.updates.get()
                yield update
                if update.finish is not None:
                    return
        finally:
            if submitted.state != "finished":
                self.abort(request.id)

    def abort(self, request_id: str) -> None:
        """Abort at any stage; unknown ids are ignored."""
        self.scheduler.abort(request_id)
        self._wake.set()

    async def flush_cache(self) -> bool:
        """Drop all cached prefixes on all tiers; False (and no change) while requests run."""
        if self.scheduler.busy:
            return False
        await self.cache.settle()
        if self.scheduler.busy or self.cache.pending:
            return False  # a request has come meanwhile
        self.cache.reset()
        return True

    def stats(self) -> EngineStats:
        """Return the current counters."""
        requests, cache, size = self.scheduler.requests, self.cache, self.config.page_tokens
        counts = requests.counts
        return EngineStats(
            running_requests=len(requests.running),
            waiting_requests=len(requests.waiting),
            device_used=cache.device_pages.used_pages * size,
            device_total=self._total_tokens("device"),
            host_used=cache.host_pages.used_pages * size,
            host_total=self._total_tokens("host"),
            prompt_tokens_total=counts.prompt_tokens,
            generation_tokens_total=counts.generated_tokens,
            cached_device_tokens_total=counts.cached_device_tokens,
            load_back_tokens_total=cache.load_back_tokens,
            evicted_tokens_total=cache.evicted_tokens,
            aborted_requests_total=counts.aborted_requests,
            steps_total=counts.steps,
            verify_steps_total=counts.verify_steps,
            drafts_total=counts.verify_steps * self.config.speculative_drafts,
            accepted_drafts_total=counts.accepted_drafts,
        )

    @property
    def memory(self) -> tuple[KVPool, ...]:
        """Return the pools whose pages the engine hands out."""
        return tuple(self._executor.pools.values())

    def _total_tokens(self, tier: str) -> int:
        pages = self.cache.device_pages if tier == "device" else self.cache.host_pages
        return pages.num_pages * self.config.page_tokens

    # -- the loop -----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until `stop`. Raises what a broken invariant raises: a dead engine is never silent."""
        try:
            await self._rounds()
        finally:
            self.cache.close()

    async def _rounds(self) -> None:
        in_flight: Work | None = None
        while not (self._stopping and in_flight is None and not self.scheduler.busy and not self._role.busy):
            self._wake.clear()  # a call of `wake` from here on ends the next `_rest`
            self.cache.poll()
            self.scheduler.release.reap()
            self._role.between_steps()
            self._apply_pressure()
            launched = await self._launch()
            if in_flight is not None:
                await in_flight.finished()
                self.scheduler.commit(in_flight.batch, in_flight.result)
            elif launched is None:
                await self._rest()
            in_flight = launched
            await self._device.settle()

    def wake(self) -> None:
        """Let `run` plan again: it may be resting, and something has changed."""
        self._wake.set()

    def stop(self) -> None:
        """Let `run` return once the running requests have ended."""
        self._stopping = True
        self._wake.set()

    async def _launch(self) -> Work | None:
        if not self.scheduler.busy:
            return None
        self._device.charge(self._cost.plan_us)
        batch = self.scheduler.next_batch(await self._staging.take())
        if batch is None:
            return None
        work = self._executor.launch(batch)
        self.cache.step_enqueued(batch.number, work.done)
        self._role.step_launched(batch, work.done)
        return work

    def _apply_pressure(self) -> None:
        """Evict as many cached tokens as a fault asks for, if any: a server may evict at any time."""
        decision = self._probes.hit("memory.evict", "scheduler")
        if decision is not None and decision.evict_tokens:
            self.cache.evict_device(decision.evict_tokens // self.config.page_tokens)

    async def _rest(self) -> None:
        """Nothing runs and nothing could be planned: wait for transfers to free pages, or for a call."""
        storage = self.cache.storage
        if storage is not None and storage.patience_s is not None:
            await self._woken_or(storage.prefetched(), storage.patience_s)
        elif self.cache.pending:
            await self._woken_or(self.cache.drain())
        elif self.scheduler.requests.held or self._role.busy:
            await self._wake.wait()
        elif self.scheduler.busy:
            running = self.scheduler.requests.running
            assert any(request.aborted for request in running), "requests wait and nothing moves"
        else:
            if self.config.cache_check:
                self.scheduler.check_idle(self._role.outside_pages)
            if not self._stopping:  # `stop` may have been called while the last request was reaped
                await self._wake.wait()

    async def _woken_or(self, drained: Coroutine[Any, Any, None], patience_s: float | None = None) -> None:
        """Wait for a call, or for transfers; `patience_s` at most."""
        waking = asyncio.create_task(self._wake.wait(), name="engine.wake")
        draining = asyncio.create_task(drained, name="engine.drain")
        try:
            await asyncio.wait((waking, draining), timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
            if draining.done():
                draining.result()
        finally:
            waking.cancel()
            draining.cancel()
