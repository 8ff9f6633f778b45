"""An engine over context-parallel ranks."""

import asyncio

import msgspec

from repro.base.probe import NullProbes, Probes
from repro.serve.config import EngineConfig
from repro.serve.device.base import Device
from repro.serve.engine import Engine, LoadedModel, guards_of
from repro.serve.guards import Guards
from repro.serve.kv.pool import Names, PageSets
from repro.serve.layersplit.group import RankGroup
from repro.serve.layersplit.partition import sizes
from repro.serve.layersplit.rank import Rank
from repro.serve.layersplit.simulated import SimCollective, SimGroup


class SplitEngine(Engine):
    """The engine of `config.layersplit`. Its pages are as many as fit beside the layers that a rank keeps.

    Raises UsageError when there are more ranks than layers, or no room beside the scratch buffers.
    """

    def __init__(
        self,
        config: EngineConfig,
        model: LoadedModel,
        device: Device,
        guards: Guards | None = None,
        probes: Probes | None = None,
    ) -> None:
        assert config.layersplit is not None
        fit = sizes(config, model.shape.num_hidden_layers)
        config_each = msgspec.structs.replace(config, device_pages=fit.device_pages, host_pages=fit.host_pages)
        probes, guards = probes or NullProbes(), guards_of(config, guards)
        names, group = Names(PageSets(probes)), SimGroup(config.layersplit.ranks)
        ranks = [
            Rank(
                config_each,
                model.shape,
                model.weights,
                device.host(f"R{n}"),
                SimCollective(group, n),
                guards,
                names,
                probes,
            )
            for n in range(config.layersplit.ranks)
        ]
        self.group = RankGroup(config_each, ranks, group, probes)
        super().__init__(config_each, model, ranks[0].device, guards, probes, names=names, executor=self.group)

    async def run(self) -> None:
        """Serve until `stop`. Raises what the scheduler's process or a rank raises."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.group.run(), name="ranks")
                await super().run()
                await self.cache.drain()  # ranks have to be there to say that their parts have ended
                self.group.stop()
        except BaseExceptionGroup as failed:
            raise _first(failed) from failed


def _first(failed: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return what was raised first, out of groups of groups."""
    first = failed.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
