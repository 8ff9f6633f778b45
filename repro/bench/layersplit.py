"""LayerSplit's throughput: the same ranks and the same memory, once with all layers on each, once split.

The scheduler, the radix tree, HiCache and the ranks are the real ones, over GLM-5's own shape with stamps for
tensors; the cost model says how long each operation takes. A simulated token is a page of 64 real ones, so
that a prompt of 120,000 tokens is 1,875 of them.

Agent sessions: of each prompt nine tenths are the session's history, which the cache has if it still holds it,
and one tenth is new. Clients ask for a turn of a session at random, as soon as the last answer has come; an answer
is one token, because LayerSplit is for prefill.
"""

import asyncio
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import msgspec
import numpy as np

from repro.base import rng
from repro.base.clock import run_virtual
from repro.serve.config import EngineConfig, LayerSplitConfig
from repro.serve.device.sim import SimDevice
from repro.serve.engine import LoadedModel
from repro.serve.layersplit.engine import SplitEngine
from repro.serve.model.config import read_config
from repro.serve.types import GenerateRequest, SamplingParams

PAGE_TOKENS = 64  # real tokens, one simulated one
LENGTHS = (40_000, 60_000, 80_000, 100_000, 120_000)


class Setting(msgspec.Struct, frozen=True):
    """The settings of one row of the study, without its length. The defaults were fixed before any rate was seen."""

    ranks: int = 8
    sessions: int = 16
    clients: int = 8
    turns: int = 48  # measured; before them each session is asked once, to fill the cache
    hit: float = 0.9  # share of a prompt that is the session's history
    # Tokens that fit beside the weights when every rank keeps all 78 layers: what a public LayerSplit test of
    # GLM-5 on eight ranks reports. They take 46 GB a rank.
    memory_tokens: int = 457_920
    host_ratio: float = 2.0  # host memory to device memory: HiCache's own default
    chunk_tokens: int = 65_536  # 8,192 a rank
    scratch: int = 1
    prefetch: bool = False
    cost: str = "h100x8-glm5-pages"
    seed: int = 0


class Measured(msgspec.Struct, frozen=True):
    """One arrangement's figures, all of the measured turns."""

    tokens_per_s: float
    ttft_p50_s: float
    ttft_p90_s: float
    ttft_p99_s: float
    device_hit: float  # share of all prompt tokens found on the device
    host_hit: float  # likewise, loaded back
    evicted_tokens: int
    resident_tokens: int  # counted at the end of the run
    capacity_tokens: int
    operations: int
    steps: int


class Row(msgspec.Struct, frozen=True):
    """One length, both arrangements."""

    length: int
    replicated_tokens_per_s: float
    split_tokens_per_s: float
    gain: float  # 0.1: a tenth more
    replicated: Measured
    split: Measured


def row(length: int, replicated: Measured, split: Measured) -> Row:
    """Return the figures of both arrangements as one row."""
    before, after = replicated.tokens_per_s, split.tokens_per_s
    return Row(length, round(before, 1), round(after, 1), round(after / before - 1, 4), replicated, split)


def measure(length: int, setting: Setting, split: bool) -> Measured:
    """Serve the load and return its figures; deterministic."""
    return _Study(length, setting, split).run()


def engine_config(length: int, setting: Setting, split: bool) -> EngineConfig:
    """Return the stack that is measured."""
    pages = setting.memory_tokens // PAGE_TOKENS
    context = -(-length // PAGE_TOKENS) + 2
    return EngineConfig(
        name="glm5-layersplit",
        numerics="stamps",
        cost=setting.cost,
        page_tokens=1,
        device_pages=pages,
        host_pages=int(pages * setting.host_ratio),
        rows=setting.clients,
        context_tokens=context,
        chunk_tokens=setting.chunk_tokens // PAGE_TOKENS,
        copy_group_pages=100_000,
        cache_check=False,
        layersplit=LayerSplitConfig(
            ranks=setting.ranks, split=split, scratch=setting.scratch, prefetch=setting.prefetch, timeout_s=3600.0
        ),
    )


def glm5() -> LoadedModel:
    """Return GLM-5's shape, without weights; the selection's size is in simulated tokens."""
    path = Path(str(files("repro.bench") / "glm5.json"))
    shape = read_config(path)
    shape = msgspec.structs.replace(shape, index_topk=shape.index_topk // PAGE_TOKENS)
    return LoadedModel("glm-5", shape, None, lambda tokens: "", frozenset())


class _Study:
    """One run."""

    def __init__(self, length: int, setting: Setting, split: bool) -> None:
        self._length = length
        self._setting = setting
        self._device = SimDevice(queue_operations_max=65_536)
        self._engine = SplitEngine(engine_config(length, setting, split), glm5(), self._device)
        self._draw = rng.generator(setting.seed, "layersplit", length)
        self._ttft_s: list[float] = []
        self._asked = 0

    def run(self) -> Measured:
        return run_virtual(self._main(), self._device)

    async def _main(self) -> Measured:
        serving = asyncio.create_task(self._engine.run(), name="stack")
        await self._clients(iter(range(self._setting.sessions)))
        before, started_us = self._engine.stats(), self._device.now_us
        operations = self._operations
        self._ttft_s.clear()
        await self._clients(iter(self._turns()))
        after, us = self._engine.stats(), self._device.now_us - started_us
        self._engine.stop()
        await serving
        prompt = after.prompt_tokens_total - before.prompt_tokens_total
        device_hit = after.cached_device_tokens_total - before.cached_device_tokens_total
        host_hit = after.load_back_tokens_total - before.load_back_tokens_total
        p50, p90, p99 = (round(float(value), 3) for value in np.quantile(self._ttft_s, (0.5, 0.9, 0.99)))
        return Measured(
            tokens_per_s=prompt * PAGE_TOKENS / us * 1e6,
            ttft_p50_s=p50,
            ttft_p90_s=p90,
            ttft_p99_s=p99,
            device_hit=round(device_hit / prompt, 4),
            host_hit=round(host_hit / prompt, 4),
            evicted_tokens=(after.evicted_tokens_total - before.evicted_tokens_total) * PAGE_TOKENS,
            resident_tokens=after.device_used * PAGE_TOKENS,
            capacity_tokens=after.device_total * PAGE_TOKENS,
            operations=self._operations - operations,
            steps=after.steps_total - before.steps_total,
        )

    @property
    def _operations(self) -> int:
        return sum(stream.enqueued + 1 for stream in self._device.streams)

    def _turns(self) -> list[int]:
        """Return the sessions that are asked, in order: drawn evenly."""
        drawn: list[int] = self._draw.integers(self._setting.sessions, size=self._setting.turns).tolist()
        return drawn

    async def _clients(self, sessions: Iterator[int]) -> None:
        """Let the clients ask for these sessions' turns, each client one after another."""

        async def client() -> None:
            for session in sessions:
                await self._ask(session)

        await asyncio.gather(*(client() for _ in range(self._setting.clients)))

    async def _ask(self, session: int) -> None:
        self._asked += 1
        tokens = -(-self._length // PAGE_TOKENS)
        history = int(tokens * self._setting.hit)
        prompt = (*_words(session, history), *_words(1000 + self._asked, tokens - history))
        request = GenerateRequest(f"turn{self._asked}", prompt, SamplingParams(max_tokens=1, ignore_eos=True))
        sent_us = self._device.now_us
        async for _ in self._engine.generate(request):
            pass
        self._ttft_s.append((self._device.now_us - sent_us) / 1e6)


def _words(family: int, count: int) -> tuple[int, ...]:
    """Return simulated tokens that begin unlike any other family's."""
    return tuple((family * 7919 + place * 104_729) % 150_000 for place in range(count))


def replaced(setting: Setting, **changes: object) -> Setting:
    """Return a setting with these fields changed."""
    return msgspec.structs.replace(setting, **changes)


BASE = Setting()
SENSITIVITY_LENGTH = 80_000
SENSITIVITY: dict[str, Setting] = {
    "16 sessions, hit of 90 %": BASE,
    "4 sessions: all fits, and splitting only costs": replaced(BASE, sessions=4, clients=4),
    "the same, links of 50 GB/s for 360": replaced(BASE, sessions=4, clients=4, cost="h100x8-glm5-pages-50g"),
    "4 sessions, hit of 99 %": replaced(BASE, sessions=4, clients=4, hit=0.99, turns=24),
    "the same, collectives of 45 us for 20": replaced(
        BASE, sessions=4, clients=4, hit=0.99, turns=24, cost="h100x8-glm5-pages-eager"
    ),
    "hit of 50 %": replaced(BASE, hit=0.5),
    "memory for 320,000 tokens": replaced(BASE, memory_tokens=320_000),
    "memory for 915,840 tokens": replaced(BASE, memory_tokens=915_840),
    "prefetch, two buffers": replaced(BASE, prefetch=True, scratch=2),
}
