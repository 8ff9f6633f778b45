"""A stack of context-parallel ranks at a size that a test can afford."""

from typing import Any

import msgspec

from repro.fault.plan import Fault
from repro.schedule.pickers import Pick, timed
from repro.serve.config import EngineConfig, LayerSplitConfig
from repro.serve.engine import LoadedModel
from repro.serve.guards import Guards
from repro.serve.layersplit.engine import SplitEngine
from tests.serve.engine.builders import SMALL_SHAPE, Watched, make_config, make_model

LAYERS = 5


def split_config(
    ranks: int = 3, *, pages: int = 16, engine: dict[str, Any] | None = None, **split: Any
) -> EngineConfig:
    """Return the configuration of a small stack of ranks; `pages` are of all layers."""
    return make_config(device_pages=pages, layersplit=LayerSplitConfig(ranks=ranks, **split), **(engine or {}))


def layered_model(layers: int = LAYERS) -> LoadedModel:
    """Return a model of stamps with so many layers."""
    return make_model(shape=msgspec.structs.replace(SMALL_SHAPE, num_hidden_layers=layers))


class SplitStack(Watched):
    """Ranks, watched like `tests.serve.engine.builders.Stack`."""

    def __init__(
        self,
        config: EngineConfig | None = None,
        model: LoadedModel | None = None,
        *,
        guards: Guards | None = None,
        faults: tuple[Fault, ...] = (),
        pick: Pick = timed,
        seed: int = 0,
    ) -> None:
        super().__init__(faults, pick, seed)
        self.engine = SplitEngine(
            config or split_config(), model or layered_model(), self.device, guards, self.injector
        )
        self.serving = self.engine

    async def check_at_rest(self) -> None:
        """Assert that no page is lost."""
        assert not self.engine.cache.pending
        self.engine.scheduler.check_idle()
