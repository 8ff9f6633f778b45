"""The stack that a configuration asks for: one engine, one over several ranks, or a router with its workers."""

from collections.abc import Callable

from repro.base.probe import Probes
from repro.serve.config import EngineConfig
from repro.serve.device.base import Device
from repro.serve.engine import Engine, LoadedModel
from repro.serve.guards import Guards
from repro.serve.layersplit.engine import SplitEngine
from repro.serve.pd.router import Router

Stack = Engine | Router
Build = Callable[[EngineConfig, LoadedModel, Device, Guards | None, Probes | None], Stack]


def build(
    config: EngineConfig,
    model: LoadedModel,
    device: Device,
    guards: Guards | None = None,
    probes: Probes | None = None,
) -> Stack:
    """Return the stack; start its `run` as a task on the device's event loop."""
    kind = SplitEngine if config.layersplit is not None else Router if config.pd is not None else Engine
    return kind(config, model, device, guards, probes)
