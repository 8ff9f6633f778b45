"""`repro serve`: the bundled stack behind HTTP, its virtual clock as fast as the processor."""

import time
from collections.abc import Callable, Coroutine
from typing import Any

import torch

from repro.base.clock import VirtualLoop
from repro.base.errors import UsageError, nearest
from repro.base.probe import NullProbes
from repro.fault.defects import check, with_defects
from repro.serve.config import CONFIGS
from repro.serve.device.sim import SimDevice
from repro.serve.launch import serve
from repro.serve.server.bridge import HostedEngine
from repro.serve.stack import build
from repro.target import load_checkpoint


def serve_bundled(
    name: str, defects: tuple[str, ...], *, host: str, port: int, seed: int, on_ready: Callable[[str], None]
) -> None:
    """Serve configuration `name` until Ctrl-C. Raises UsageError for an unknown one or a port in use."""
    if name not in CONFIGS:
        raise UsageError(f'--config {name}: there is no such configuration; nearest: "{nearest(name, CONFIGS)}"')
    config = CONFIGS[name]
    check(defects, config, "--defect")
    guards = with_defects(defects, "--defect")
    checkpoint = load_checkpoint(config)

    def hosted() -> HostedEngine:
        device = SimDevice(NullProbes())
        engine = build(config, checkpoint.model, device, guards)
        return HostedEngine(VirtualLoop(device, external=True), engine, lambda: _without_gradients(engine.run))

    serve(hosted, checkpoint.tokenizer, host=host, port=port, clock=time.time, seed=seed, on_ready=on_ready)


async def _without_gradients(run: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run the engine in inference mode, which belongs to a thread: the engine's."""
    with torch.inference_mode():
        await run()
