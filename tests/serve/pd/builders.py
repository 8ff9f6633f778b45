"""A disaggregated stack at a size that a test can afford, watched like `tests.serve.engine.builders.Stack`."""

from typing import Any

from repro.fault.plan import Fault
from repro.schedule.pickers import timed
from repro.serve.config import EngineConfig, PdConfig
from repro.serve.engine import LoadedModel
from repro.serve.guards import Guards
from repro.serve.pd.router import Router
from tests.serve.engine.builders import Watched, make_config, make_model


def pd_config(*, pages: int = 16, drafts: int = 0, **pd: Any) -> EngineConfig:
    """Return the configuration of a small disaggregated stack."""
    return make_config(device_pages=pages, speculative_drafts=drafts, pd=PdConfig(**pd))


class PdStack(Watched):
    """A router and its workers."""

    def __init__(
        self,
        config: EngineConfig | None = None,
        model: LoadedModel | None = None,
        *,
        guards: Guards | None = None,
        faults: tuple[Fault, ...] = (),
        seed: int = 0,
    ) -> None:
        super().__init__(faults, timed, seed)
        self.router = Router(config or pd_config(), model or make_model(), self.device, guards, self.injector)
        self.serving = self.router

    async def check_at_rest(self) -> None:
        """Assert that no page of a worker that was not killed is lost."""
        living = [worker for worker in self.router.prefill if not worker.killed]
        for worker in (*living, *self.router.decode):
            await worker.engine.cache.drain()
            worker.engine.scheduler.check_idle(worker.outside_pages)
