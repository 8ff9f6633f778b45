"""A whole stack at a size that a test can afford: a small model in stamps, tiny pools, three detectors."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import msgspec
import numpy as np
import torch
from tokenizers import Tokenizer

from detectors.pages.canary import CanaryDetector
from detectors.pages.ordering import OrderingDetector
from detectors.pages.ownership import OwnershipDetector
from repro.base.clock import run_virtual
from repro.base.probe import BadRead, Event, HostSync, Op
from repro.fault.injector import Injector
from repro.fault.kinds import Delay
from repro.fault.plan import Fault, When
from repro.schedule.pickers import Pick, timed
from repro.serve.config import EngineConfig
from repro.serve.device.sim import SimDevice
from repro.serve.engine import BUNDLED_CHECKPOINT, Engine, LoadedModel
from repro.serve.guards import Guards
from repro.serve.kv.stamps import mix, token_words
from repro.serve.model.config import ModelConfig, RopeParameters
from repro.serve.pd.router import Router
from repro.serve.sched.batch import Batch
from repro.serve.sched.rows import Staging
from repro.serve.types import GenerateRequest, SamplingParams, Update

VOCABULARY = 96
PAGE = 4  # tokens; a test that says "two pages" means eight tokens

SMALL_SHAPE = ModelConfig(
    model_type="glm_moe_dsa", vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, moe_intermediate_size=32,
    num_hidden_layers=2, num_attention_heads=4, n_routed_experts=4, num_experts_per_tok=2, kv_lora_rank=32,
    q_lora_rank=32, qk_nope_head_dim=16, qk_rope_head_dim=16, v_head_dim=24, index_n_heads=4, index_head_dim=32,
    index_topk=4, max_position_embeddings=512, rope_parameters=RopeParameters(1e5),
)  # fmt: skip

Main = Callable[["Stack"], Coroutine[Any, Any, None]]


def make_config(**changes: Any) -> EngineConfig:
    """Return the configuration of an engine of 16 device pages of 4 tokens."""
    fields: dict[str, Any] = {
        "name": "small", "numerics": "stamps", "page_tokens": PAGE, "device_pages": 16, "host_pages": 32, "rows": 4,
        "context_tokens": 32, "chunk_tokens": 8, "waiting_max": 64, "copy_group_pages": 2,
    }  # fmt: skip
    return EngineConfig(**(fields | changes))


def make_model(**changes: Any) -> LoadedModel:
    """Return a model of stamps whose tokens read as letters."""
    fields: dict[str, Any] = {
        "name": "small", "shape": SMALL_SHAPE, "weights": None, "decode": letters, "eos": frozenset(),
    }  # fmt: skip
    return LoadedModel(**(fields | changes))


def letters(tokens: list[int]) -> str:
    """Return one printable character for each token."""
    return "".join(chr(32 + token % 95) for token in tokens)


def make_request(name: str, tokens: Sequence[int], answer: int = 1, **sampling: Any) -> GenerateRequest:
    """Return a request for `answer` tokens."""
    return GenerateRequest(name, tuple(tokens), SamplingParams(max_tokens=answer, ignore_eos=True, **sampling))


def prompt(family: int, length: int) -> tuple[int, ...]:
    """Return the first tokens of a family's endless prompt: two of one family share their prefix."""
    return tuple((7 * place + 13 * family + family * place * place) % VOCABULARY for place in range(length))


def source_tokens(count: int) -> tuple[int, ...]:
    """Return the first tokens of real source text."""
    text = "".join(path.read_text() for path in sorted(BUNDLED_CHECKPOINT.parent.glob("*.py")))
    return tuple(Tokenizer.from_file(str(BUNDLED_CHECKPOINT / "tokenizer.json")).encode(text).ids[:count])


def stamps_answer(tokens: Sequence[int], count: int, vocabulary: int = VOCABULARY) -> tuple[int, ...]:
    """Return what numerics = "stamps" answers to a prompt, computed without an engine."""
    answer: list[int] = []
    for _ in range(count):
        whole = np.array([*tokens, *answer], np.int64)
        prefix = token_words(whole, np.arange(len(whole))).sum(dtype=np.uint64)
        answer.append(int(mix(np.array([prefix]))[0] % np.uint64(vocabulary)))
    return tuple(answer)


def delay(at: str, us: float, **when: Any) -> Fault:
    """Return a fault that delays operations of a name."""
    return Fault(at, Delay(us), When(**when))


def never(*_: object) -> None:
    """Be the guard that orders nothing."""


@dataclass
class Answer:
    """What a client got."""

    updates: list[Update] = field(default_factory=list)

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(token for update in self.updates for token in update.tokens)

    @property
    def logprobs(self) -> tuple[float, ...]:
        return tuple(logprob for update in self.updates for logprob in update.logprobs)

    @property
    def text(self) -> str:
        return "".join(update.text for update in self.updates)

    @property
    def last(self) -> Update:
        assert self.updates and self.updates[-1].finish is not None, "the answer has not ended"
        return self.updates[-1]


class Watched:
    """A stack on a simulated device, watched by three detectors."""

    serving: Engine | Router

    def __init__(self, faults: tuple[Fault, ...], pick: Pick, seed: int) -> None:
        self.events: list[Event] = []
        self.ordering, self.ownership, self.canary = OrderingDetector(), OwnershipDetector(), CanaryDetector()
        sinks = (self.events.append, self.ordering.feed, self.ownership.feed, self.canary.feed)
        self.injector = Injector(faults, seed, sinks)
        self.device = SimDevice(self.injector, pick)

    def run(self, main: Callable[[Self], Coroutine[Any, Any, None]]) -> Self:
        """Run a client to its end, then the stack until it is idle and has nothing in flight."""
        with torch.inference_mode():
            run_virtual(self._beside(main), self.device)
        return self

    async def ask(self, request: GenerateRequest) -> Answer:
        """Send a request and return its whole answer."""
        answer = Answer()
        async for update in self.serving.generate(request):
            answer.updates.append(update)
        return answer

    async def ask_all(self, *requests: GenerateRequest) -> list[Answer]:
        """Send requests at once and return all answers."""
        return await asyncio.gather(*(self.ask(request) for request in requests))

    async def _beside(self, main: Callable[[Self], Coroutine[Any, Any, None]]) -> None:
        serving = asyncio.create_task(self.serving.run(), name="stack")
        client = asyncio.create_task(main(self), name="client")
        await asyncio.wait((serving, client), return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            client.cancel()
            serving.result()
            raise AssertionError("the stack stopped by itself")
        client.result()
        self.serving.stop()
        await serving
        await self.check_at_rest()

    async def check_at_rest(self) -> None:
        """Assert that nothing was lost; called when nothing runs any more."""
        raise NotImplementedError

    def assert_clean(self) -> None:
        """Assert that no detector found anything, and that they had something to look at."""
        for detector in (self.ordering, self.ownership, self.canary):
            verdict = detector.verdict()
            assert verdict.answer == "clean", verdict


class Stack(Watched):
    """An engine: run a client against it with `run`."""

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
        self.engine = Engine(config or make_config(), model or make_model(), self.device, guards, self.injector)
        self.serving = self.engine
        self.batches: list[Batch] = []
        self._plan = self.engine.scheduler.next_batch
        self.engine.scheduler.next_batch = self._planned  # type: ignore[method-assign]

    async def check_at_rest(self) -> None:
        """Assert that nothing was lost."""
        await self.engine.cache.drain()
        if self.engine.config.cache_check:
            self.engine.scheduler.check_idle()

    def _planned(self, staging: Staging) -> Batch | None:
        batch = self._plan(staging)
        if batch is not None:
            self.batches.append(batch)
        return batch

    # -- what was recorded ------------------------------------------------------------------------

    @property
    def signatures(self) -> set[str]:
        """Return the signatures of all findings of ordering and ownership."""
        findings = self.ordering.verdict().findings + self.ownership.verdict().findings
        return {finding.signature for finding in findings}

    @property
    def bad_reads(self) -> list[BadRead]:
        return [event for event in self.events if isinstance(event, BadRead)]

    @property
    def steps(self) -> list[dict[str, int]]:
        """Return for each step how many tokens of each request it computes."""
        return [{member.request.id: member.count for member in batch.members} for batch in self.batches]

    def ops(self, name: str = "", **fields: Any) -> list[Op]:
        """Return the operations of a name, in the order they ended."""
        found = [event for event in self.events if isinstance(event, Op) and event.name.startswith(name)]
        return [op for op in found if all(getattr(op, key) == value for key, value in fields.items())]

    def syncs(self, why: str) -> list[HostSync]:
        return [event for event in self.events if isinstance(event, HostSync) and event.why.startswith(why)]


def same_events(one: Sequence[Event], other: Sequence[Event]) -> bool:
    """Return whether two runs recorded the same, bit for bit."""
    return [msgspec.json.encode(event) for event in one] == [msgspec.json.encode(event) for event in other]
