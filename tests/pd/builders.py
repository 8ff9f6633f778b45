"""A disaggregated stack at a size that a test can afford, watched like `tests.engine.builders.Stack`."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from detectors.canary import CanaryDetector
from detectors.ordering import OrderingDetector
from detectors.ownership import OwnershipDetector
from repro.base.clock import run_virtual
from repro.base.probe import Event
from repro.fault.injector import Injector
from repro.fault.plan import Fault
from repro.serve.config import EngineConfig, PdConfig
from repro.serve.device.sim import SimDevice
from repro.serve.engine import LoadedModel
from repro.serve.guards import Guards
from repro.serve.pd.prefill import PrefillWorker
from repro.serve.pd.router import Router
from repro.serve.types import GenerateRequest
from tests.engine.builders import Answer, make_config, make_model

Main = Callable[["PdStack"], Coroutine[Any, Any, None]]


def pd_config(*, pages: int = 16, drafts: int = 0, **pd: Any) -> EngineConfig:
    """Return the configuration of a small disaggregated stack."""
    return make_config(device_pages=pages, speculative_drafts=drafts, pd=PdConfig(**pd))


class PdStack:
    """A router and its workers on one simulated device."""

    def __init__(
        self,
        config: EngineConfig | None = None,
        model: LoadedModel | None = None,
        *,
        guards: Guards | None = None,
        faults: tuple[Fault, ...] = (),
        seed: int = 0,
    ) -> None:
        self.events: list[Event] = []
        self.ordering, self.ownership, self.canary = OrderingDetector(), OwnershipDetector(), CanaryDetector()
        sinks = (self.events.append, self.ordering.feed, self.ownership.feed, self.canary.feed)
        self.injector = Injector(faults, seed, sinks)
        self.device = SimDevice(self.injector)
        self.router = Router(config or pd_config(), model or make_model(), self.device, guards, self.injector)

    def run(self, main: Main) -> "PdStack":
        """Run a client to its end, then the workers until nothing is under way."""
        run_virtual(self._beside(main), self.device)
        return self

    async def ask(self, request: GenerateRequest) -> Answer:
        """Send a request and return its whole answer."""
        answer = Answer()
        async for update in self.router.generate(request):
            answer.updates.append(update)
        return answer

    async def _beside(self, main: Main) -> None:
        serving = asyncio.create_task(self.router.run(), name="router")
        client = asyncio.create_task(main(self), name="client")
        await asyncio.wait((serving, client), return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            client.cancel()
            serving.result()
            raise AssertionError("the router stopped by itself")
        client.result()
        self.router.stop()
        await serving
        for worker in (*self.router.prefill, *self.router.decode):
            if not (isinstance(worker, PrefillWorker) and worker.killed):
                await worker.engine.cache.drain()
                worker.engine.scheduler.check_idle(worker.outside_pages)

    def assert_clean(self) -> None:
        """Assert that no detector found anything, and that they had something to look at."""
        for detector in (self.ordering, self.ownership, self.canary):
            verdict = detector.verdict()
            assert verdict.answer == "clean", verdict
