"""The router: one engine to the server, many workers behind it.

client ── router ── submit ──> prefill worker ═══ rows ═══> decode worker ── tokens ──> router ── client
"""

import asyncio
from collections.abc import AsyncIterator
from itertools import count, cycle

import msgspec

from repro.base.probe import NullProbes, Probes
from repro.serve.config import EngineConfig
from repro.serve.device.base import Device
from repro.serve.engine import LoadedModel
from repro.serve.guards import Guards
from repro.serve.kv.pool import KVPool, Names, PageSets
from repro.serve.pd.decode import DecodeWorker
from repro.serve.pd.messages import Submit
from repro.serve.pd.network import Network
from repro.serve.pd.prefill import PrefillWorker
from repro.serve.types import EngineStats, GenerateRequest, RejectedError, ServedModel, Update

IMBALANCE_MAX = 4  # a worker with more prompts than this above the idlest is not chosen, whatever it has cached


class Router:
    """A disaggregated stack (`types.ServingEngine`). Start `run` as a task on the device's event loop."""

    def __init__(
        self,
        config: EngineConfig,
        model: LoadedModel,
        device: Device,
        guards: Guards | None = None,
        probes: Probes | None = None,
    ) -> None:
        assert config.pd is not None
        self.config = config
        self._device = device
        self._model = model
        probes, guards = probes or NullProbes(), guards or Guards()
        names = Names(PageSets(probes))
        network = self._network = Network(probes, config.pd.message_us)
        self.decode = [
            DecodeWorker(config, model, device.host(f"D{number}"), guards, probes, names, network)
            for number in range(config.pd.decode)
        ]
        remote = {worker.device.name: worker.memory for worker in self.decode}
        self.prefill = [
            PrefillWorker(config, model, device.host(f"P{number}"), guards, probes, names, network, remote)
            for number in range(config.pd.prefill)
        ]
        self._workers: list[PrefillWorker | DecodeWorker] = [*self.decode, *self.prefill]
        for worker in self._workers:
            network.join(worker)
        self._rooms = count(1)
        self._next_decode = cycle(self.decode)

    # -- what the server calls (types.ServingEngine) ----------------------------------------------

    @property
    def served(self) -> ServedModel:
        """Return the model and its limits. A prompt's log-probabilities have no way back from a prefill worker."""
        described: dict[str, object] = msgspec.to_builtins(self.config)
        total = sum(worker.engine.stats().device_total for worker in self.decode)
        described |= {"model_name": self._model.name, "max_total_num_tokens": total}
        return ServedModel(self._model.name, self.config.context_tokens, False, described)

    @property
    def memory(self) -> tuple[KVPool, ...]:
        """Return every pool of every worker, each by its tier's name."""
        return tuple(pool for worker in self._workers for pool in worker.engine.memory)

    async def generate(self, request: GenerateRequest) -> AsyncIterator[Update]:
        """Submit and stream. Raises RejectedError before the first update; closing aborts."""
        decode = next(self._next_decode)
        prefill = self._choose_prefill(request)
        room = next(self._rooms)
        submitted = decode.submit(room, request, prefill.device.name)
        self._network.send(self._device, prefill.device.name, Submit(room, request, decode.device.name))
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
        for worker in self.decode:
            worker.engine.abort(request_id)

    async def flush_cache(self) -> bool:
        """Drop all cached prefixes on all tiers; False while requests run, or when one came meanwhile."""
        alive = [worker for worker in self._workers if worker.alive]
        if any(worker.engine.scheduler.busy or worker.busy for worker in alive):
            return False
        return all([await worker.engine.flush_cache() for worker in alive])

    def stats(self) -> EngineStats:
        """Return the counters of all workers together; a prompt counts once, where it was computed."""
        decode = [worker.engine.stats() for worker in self.decode]
        prefill = [worker.engine.stats() for worker in self.prefill]
        total = {
            name: sum(getattr(stats, name) for stats in (*decode, *prefill)) for name in EngineStats.__struct_fields__
        }
        total["prompt_tokens_total"] = sum(stats.prompt_tokens_total for stats in prefill)
        total["generation_tokens_total"] = sum(stats.generation_tokens_total for stats in decode)
        total["aborted_requests_total"] = sum(stats.aborted_requests_total for stats in decode)
        total["waiting_requests"] = sum(worker.waiting_requests for worker in self.decode)
        return EngineStats(**total)

    # -- the workers ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run all workers until `stop`. Raises what any of them raises."""
        try:
            async with asyncio.TaskGroup() as group:
                for worker in self.prefill:
                    group.create_task(worker.run(), name=worker.device.name)
                decoding = [group.create_task(worker.run(), name=worker.device.name) for worker in self.decode]
                await asyncio.wait(decoding)
                for worker in self.prefill:  # not earlier: a decode worker may still ask whether pages are safe
                    worker.engine.stop()
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from failed

    def stop(self) -> None:
        """Let `run` return once the running requests have ended."""
        for worker in self.decode:
            worker.engine.stop()

    @property
    def quarantined_pages(self) -> int:
        """Return how many pages are out of use, because no prefill worker has answered that they are safe."""
        return sum(worker.quarantined_pages for worker in self.decode)

    def _choose_prefill(self, request: GenerateRequest) -> PrefillWorker:
        """Return the worker that has most of the prompt cached, unless it has much more to do than another."""
        alive = [worker for worker in self.prefill if worker.alive]
        if not alive:
            raise RejectedError("no prefill worker is left", 503)
        idlest = min(worker.load for worker in alive)
        near = [worker for worker in alive if worker.load <= idlest + IMBALANCE_MAX]
        return max(near, key=lambda worker: (worker.cached_pages(request), -worker.load))
