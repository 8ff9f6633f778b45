"""The engine that a scenario asks for, as a target builds it."""

from repro.base.probe import Probes
from repro.engines.sglang.classes.engine import SglangEngine
from repro.serve.config import EngineConfig
from repro.serve.device.base import Device
from repro.serve.engine import LoadedModel
from repro.serve.guards import Guards


def build_sglang(
    defects: tuple[str, ...],
    config: EngineConfig,
    model: LoadedModel,
    device: Device,
    guards: Guards,
    probes: Probes,
) -> SglangEngine:
    """Return an engine around SGLang's classes with these `fits.DEFECTS`; it has its own guards and takes none."""
    return SglangEngine(config, model, device, probes, awaits_index="hicache_early_read" not in defects)
