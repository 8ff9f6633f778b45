"""`repro serve`: the bundled stack behind HTTP, its virtual clock as fast as the processor."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from repro.base.clock import VirtualLoop
from repro.base.errors import UsageError, nearest
from repro.base.lazy import torch
from repro.fault.defects import check, config_with_defects, with_defects
from repro.fault.injector import Injector
from repro.fault.plan import Fault
from repro.run.checkpoint import load_checkpoint
from repro.serve.config import CONFIGS, EngineConfig
from repro.serve.device.sim import SimDevice
from repro.serve.launch import serve
from repro.serve.server.bridge import HostedEngine
from repro.serve.stack import build


@dataclass(frozen=True)
class Service:
    """What is served: a stack, what is wrong with it, and the faults that bring it out."""

    config: EngineConfig
    defects: tuple[str, ...] = ()
    faults: tuple[Fault, ...] = ()


def service_of(name: str, defects: tuple[str, ...]) -> Service:
    """Return a bundled configuration with these defects. Raises UsageError for an unknown one."""
    if name not in CONFIGS:
        raise UsageError(f'--config {name}: there is no such configuration; nearest: "{nearest(name, CONFIGS)}"')
    return Service(CONFIGS[name], defects)


def serve_bundled(service: Service, *, host: str, port: int, seed: int, on_ready: Callable[[str], None]) -> None:
    """Serve a stack until Ctrl-C. Raises UsageError for defects that it cannot have, and for a port in use."""
    check(service.defects, service.config, "--defect")
    config = config_with_defects(service.defects, service.config)
    guards = with_defects(service.defects, "--defect")
    checkpoint = load_checkpoint(config)

    def hosted() -> HostedEngine:
        injector = Injector(service.faults, seed)
        device = SimDevice(injector)
        engine = build(config, checkpoint.model, device, guards, injector)
        return HostedEngine(VirtualLoop(device, external=True), engine, lambda: _without_gradients(engine.run))

    serve(hosted, checkpoint.tokenizer, host=host, port=port, clock=time.time, seed=seed, on_ready=on_ready)


async def _without_gradients(run: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run the engine in inference mode, which belongs to a thread: the engine's."""
    with torch.inference_mode():
        await run()
