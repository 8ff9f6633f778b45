"""The engine around SGLang's classes, asked without a server before it."""

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable

import torch

from repro.base.clock import run_virtual
from repro.base.probe import NullProbes
from repro.engines.sglang.classes.engine import SglangEngine
from repro.run.checkpoint import load_checkpoint
from repro.serve.device.sim import SimDevice
from repro.serve.types import GenerateRequest, Update
from tests.engines.sglang.builders import component, needs_sglang

pytestmark = needs_sglang
PROMPT = tuple(range(100, 300))


def run(asked: Callable[[SglangEngine], Awaitable[list[Update]]]) -> list[Update]:
    """Return what an engine has answered."""
    config, device = component().config, SimDevice(NullProbes())

    async def main() -> list[Update]:
        engine = SglangEngine(config, load_checkpoint(config).model, device)
        running = asyncio.create_task(engine.run())
        updates = await asked(engine)
        engine.stop()
        await running
        return updates

    with torch.inference_mode():
        return run_virtual(main(), device)


def test_only_requests_of_one_cache_key_share_prefixes() -> None:
    async def asked(engine: SglangEngine) -> list[Update]:
        requests = [GenerateRequest(f"r{n}", PROMPT, cache_key=key) for n, key in enumerate(("", "a", "b", "a", ""))]
        return [update for request in requests async for update in engine.generate(request)]

    assert [update.cached_device_tokens for update in run(asked)] == [0, 0, 0, 192, 192]


def test_who_closes_an_ended_request_aborts_no_other_of_its_id() -> None:
    async def asked(engine: SglangEngine) -> list[Update]:
        ended, other = (engine.generate(GenerateRequest("same", PROMPT)) for _ in range(2))
        updates = [await anext(ended)]
        next_one = asyncio.ensure_future(anext(other))
        await asyncio.sleep(0)  # it is submitted
        await ended.aclose()  # type: ignore[attr-defined]
        return [*updates, await next_one]

    assert [update.finish for update in run(asked)] == ["length", "length"]


def test_what_sglang_imports_and_is_not_installed_is_named_each_time() -> None:
    script = (
        "import sys\n"
        "from repro.base.errors import UsageError\n"
        "from repro.engines.sglang import pinned\n"
        "sys.modules['orjson'] = None\n"
        "for _ in range(2):\n"
        "    try: pinned.load()\n"
        "    except UsageError as error: print(error)\n"
        "del sys.modules['orjson']\n"
        "print(pinned.load().radix_cache.__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    first, second, loaded = done.stdout.splitlines()
    assert first == second and "imports orjson, which is not installed" in first
    assert loaded == "sglang.srt.mem_cache.radix_cache"
