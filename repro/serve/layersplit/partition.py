"""Which rank keeps which layers, and how many tokens fit."""

from dataclasses import dataclass

from repro.base.errors import UsageError
from repro.serve.config import CONTEXT_SHARE_MAX, EngineConfig, LayerSplitConfig


def owned_layers(rank: int, layers: int, ranks: int) -> range:
    """Return the layers that a rank owns: contiguous, and balanced to within one; the first ranks get more."""
    base, more = divmod(layers, ranks)
    first = rank * base + min(rank, more)
    return range(first, first + base + (rank < more))


def owner_of(layer: int, layers: int, ranks: int) -> int:
    """Return the rank that owns a layer."""
    return next(rank for rank in range(ranks) if layer in owned_layers(rank, layers, ranks))


@dataclass(frozen=True)
class Partition:
    """Which layers one rank keeps, and in which scratch buffer it has which of the others."""

    rank: int
    layers: int
    settings: LayerSplitConfig

    @property
    def kept(self) -> range:
        """Return the layers that this rank keeps the KV of."""
        split = self.settings.split
        return owned_layers(self.rank, self.layers, self.settings.ranks) if split else range(self.layers)

    def buffer(self, layer: int) -> int:
        """Return the scratch buffer of a layer that is not kept."""
        return layer % self.settings.scratch


@dataclass(frozen=True)
class Sizes:
    """Pages of a rank's pools."""

    device_pages: int
    host_pages: int


def sizes(config: EngineConfig, layers: int) -> Sizes:
    """Return how many pages fit into the memory of `device_pages` and `host_pages` pages of all layers.

    Raises UsageError when there are more ranks than layers, or no room beside the scratch buffers.
    """
    settings = config.layersplit
    assert settings is not None
    if not settings.split:
        return Sizes(config.device_pages, config.host_pages)
    if settings.ranks > layers:
        raise UsageError(
            f"layersplit.ranks = {settings.ranks}: the model has {layers} layers, and each rank has to own one; "
            f"use at most {layers} ranks, or split = false"
        )
    kept = len(owned_layers(0, layers, settings.ranks))
    scratch = settings.scratch if kept < layers else 0
    found = Sizes(config.device_pages * layers // (kept + scratch), config.host_pages * layers // kept)
    if config.context_tokens > CONTEXT_SHARE_MAX * found.device_pages * config.page_tokens:
        raise UsageError(
            f"layersplit: memory for {config.device_pages} pages of {layers} layers holds {found.device_pages} pages "
            f"of {kept} own layers and {scratch} scratch buffers; context_tokens = {config.context_tokens} is "
            f"more than {CONTEXT_SHARE_MAX:.0%} of them; raise device_pages, or take fewer scratch buffers"
        )
    return found
