"""What executes the steps and the transfers that an engine plans: its pools, rows, streams and forward."""

from typing import TYPE_CHECKING, Protocol

from repro.base.probe import Component, Probes
from repro.serve.config import EngineConfig
from repro.serve.device.base import Device, Event
from repro.serve.device.cost import PRESETS
from repro.serve.forward import Forward
from repro.serve.guards import Guards
from repro.serve.kv.copier import Copier, TierCopier
from repro.serve.kv.pool import Home, KVPool, Names, Place
from repro.serve.kv.reads import ReadCheck
from repro.serve.memory import Memory
from repro.serve.model.config import ModelConfig
from repro.serve.sched.batch import Batch
from repro.serve.sched.rows import DeviceRows, RowNames
from repro.serve.sched.sampling import Chosen

if TYPE_CHECKING:  # compiles kernels, which numerics = "stamps" does without
    from repro.serve.model.glm5 import Glm5


class Work(Protocol):
    """A step that was enqueued."""

    @property
    def batch(self) -> Batch:
        """Return what the step computes."""

    @property
    def done(self) -> Event:
        """Return the event behind the step."""

    @property
    def result(self) -> Chosen | None:
        """Return what the step chose; the host may read it once it has `finished`."""

    async def finished(self) -> None:
        """Wait on the host until the step has run."""


class Executor(Protocol):
    """Carries out what an engine plans."""

    @property
    def pools(self) -> dict[Place, KVPool]:
        """Return the pools whose pages the engine hands out."""

    @property
    def copier(self) -> Copier:
        """Return what copies between the tiers."""

    @property
    def description(self) -> dict[str, object]:
        """Return what /server_info says of it beside the configuration."""

    def launch(self, batch: Batch) -> Work:
        """Enqueue a step."""


def widths_of(shape: ModelConfig, weights: "Glm5 | None") -> dict[Component, int] | None:
    """Return how many floats a cached row of each component has; None under numerics = "stamps"."""
    return None if weights is None else {"latent": shape.latent_width, "index": shape.index_head_dim}


class Worker:
    """The device side of an engine that has one host to itself (`Executor`)."""

    description: dict[str, object] = {}

    def __init__(
        self,
        config: EngineConfig,
        shape: ModelConfig,
        weights: "Glm5 | None",
        device: Device,
        guards: Guards,
        names: Names,
        probes: Probes,
    ) -> None:
        cost = PRESETS[config.cost]
        widths = widths_of(shape, weights)
        speculative = config.speculative_drafts > 0
        layers = shape.num_hidden_layers + speculative
        size, sums = config.page_tokens, config.checksums
        self.pools: dict[Place, KVPool] = {
            "device": KVPool(device.named("device"), layers, config.device_pages, size, widths, checksums=sums),
            "host": KVPool(device.named("host"), layers, config.host_pages, size, widths, checksums=sums),
        }
        pool = self.pools["device"]
        compute = device.stream("compute")
        self.copier = TierCopier(config, device, compute, self.pools, names, guards, cost, layers)
        draft_width = shape.hidden_size if speculative and weights is not None else 0
        row_names = RowNames(device.named("rows"), names.page_sets) if config.upload_stream else None
        rows = DeviceRows(config.rows, config.context_tokens, config.page_tokens, draft_width, row_names)
        homes = tuple(Home(pool, layer) for layer in range(layers))
        memory = Memory(pool, homes, rows, weights, shape.vocab_size)
        check = ReadCheck(device, homes, names, probes, shape.index_topk)
        upload = device.stream("upload") if config.upload_stream else compute
        self._forward = Forward(device, compute, upload, memory, check, guards, cost, speculative)

    def launch(self, batch: Batch) -> Work:
        """Enqueue a step."""
        return self._forward.launch(batch)
