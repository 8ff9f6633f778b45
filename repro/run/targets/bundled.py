"""The bundled stack on a simulated device, client and server in one virtual time; or SGLang's classes in its place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import nullcontext
from types import MappingProxyType
from typing import Protocol

from detectors.base import DetectorVerdict
from repro.base.clock import run_virtual
from repro.base.errors import HarnessError, ReproError
from repro.base.lazy import torch
from repro.fault.aftermath import Corruptions
from repro.fault.corrupt import Corruptor
from repro.fault.defects import config_with_defects, with_defects
from repro.fault.injector import Injector
from repro.load.asgi import AsgiStreamTransport
from repro.load.client import open_client
from repro.load.driver import drive
from repro.load.plan import LoadResult
from repro.run.answer_detectors import AnswerDetectors, acceptance_rules, nonces_of, vocabulary_of
from repro.run.checkpoint import load_checkpoint
from repro.run.judge.compare import ask_clean_decode, judge_without_answers
from repro.run.options import RunOptions
from repro.run.recorder import Recorder
from repro.run.targets.base import Load
from repro.scenario.schema import Scenario
from repro.schedule.pickers import timed
from repro.schedule.strategies import Exploring, explorer, stands_alone
from repro.serve.device.sim import SimDevice
from repro.serve.engine import checkpoint_folder
from repro.serve.guards import Guards
from repro.serve.kv.pool import KVPool
from repro.serve.server.app import create_app
from repro.serve.stack import Build, build
from repro.serve.types import GenerateRequest, ServingEngine, Update
from repro.trace.format import Session


class RunnableEngine(ServingEngine, Protocol):
    """An engine that a target runs beside its clients."""

    @property
    def memory(self) -> tuple[KVPool, ...]:
        """Return every pool that a corrupting fault may change."""

    async def run(self) -> None:
        """Serve until `stop`."""

    def stop(self) -> None:
        """Let `run` return once the running requests have ended."""


class BundledTarget:
    """The bundled stack. `guards` take the place of those that the scenario's defects leave, and `build` makes it."""

    versions: Mapping[str, str] = MappingProxyType({})
    repeats = True

    def __init__(
        self,
        scenario: Scenario,
        options: RunOptions,
        sessions: Sequence[Session],
        guards: Guards | None = None,
        build: Build = build,
    ) -> None:
        """Load the checkpoint. Raises UsageError for one that cannot be read."""
        self._defects = () if options.control else scenario.defects
        self.config = config_with_defects(self._defects, scenario.config)
        self.checkpoint = load_checkpoint(scenario.config)
        self.context_tokens_max: int | None = scenario.config.context_tokens
        self.acceptance = acceptance_rules(scenario.acceptance, checkpoint_folder(scenario.config))
        model = self.checkpoint.model
        self.answer_detectors = AnswerDetectors(
            vocabulary_of(self.checkpoint.tokenizer, model.shape.vocab_size, model.eos),
            nonces_of(sessions),
            has_text=model.weights is not None,
        )
        self.explored: Exploring | None = explorer(options.schedule)
        self._options = options
        self._build = build
        self._guards = guards or with_defects(self._defects, scenario.name)
        self._asked: dict[str, GenerateRequest] = {}  # requests by id, for the clean decode
        self._corruptor: Corruptor | None = None
        self.corruptions: Mapping[str, Corruptions] = {}

    def count_tokens(self, text: str) -> int:
        """Return how many tokens a text has."""
        return len(self.checkpoint.encoder.encode_text(text))

    def prepare(self, injector: Injector, note: Callable[[str], None]) -> None:
        """Take the probes of the run; a corrupting fault hears the events behind the recorder."""
        self._injector = injector
        corrupting = any(fault.do.corrupting for fault in injector.faults)
        # A fault that changes bytes does so right behind an operation.
        apart = everything if corrupting else stands_alone(self._options.schedule)
        self.device = SimDevice(injector, self.explored or timed, apart=apart)
        if corrupting:
            self._corruptor = Corruptor(injector, self._options.seed, drafts=self.config.speculative_drafts > 0)
            self.corruptions = self._corruptor.aftermath.counts
            injector.listen(self._corruptor.feed)

    def drive(self, load: Load) -> LoadResult:
        """Run the whole load to its end, in virtual time."""
        computes = self.checkpoint.model.weights is not None
        with torch.inference_mode() if computes else nullcontext():
            return run_virtual(self._serve(load), self.device)

    def evidence(self, recorder: Recorder, on_check: Callable[[int, int], None]) -> list[DetectorVerdict]:
        """Compare answers with the clean decode, where the stack computes any."""
        if self.checkpoint.model.weights is None:
            return judge_without_answers(recorder)
        return ask_clean_decode(
            recorder, self._asked, self.checkpoint, self.config.context_tokens,
            sample=self._options.oracle_sample, seed=self._options.seed, done=on_check,
        )  # fmt: skip

    async def _serve(self, load: Load) -> LoadResult:
        loop = asyncio.get_running_loop()
        engine = self._build_engine()
        if self._corruptor is not None:
            self._corruptor.memory(engine.memory)
        engine.generate = self._remembering(engine.generate)  # type: ignore[method-assign, assignment]
        app = create_app(engine, self.checkpoint.tokenizer, clock=loop.time, seed=self._options.seed)
        client = open_client("http://bundled", transport=AsgiStreamTransport(app), read_timeout_s=None)
        running = asyncio.create_task(engine.run(), name="engine")
        driving = asyncio.create_task(drive(load.sessions, client, load.plan, *load.listeners), name="load")
        load.limits.may_cancel(driving)
        try:
            await asyncio.wait((running, driving), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:  # Ctrl-C: the driver delivers the requests under way
            load.limits.interrupt()
        if running.done():
            driving.cancel()
            await asyncio.wait((driving,))  # it records the requests under way
            raise _death_of(running)
        result = await driving
        engine.stop()
        await running
        await client.http.aclose()
        return result

    def _build_engine(self) -> RunnableEngine:
        return self._build(self.config, self.checkpoint.model, self.device, self._guards, self._injector)

    def _remembering(
        self, generate: Callable[[GenerateRequest], AsyncIterator[Update]]
    ) -> Callable[[GenerateRequest], AsyncIterator[Update]]:
        """Return a `generate` that remembers what it was asked."""

        def generate_and_remember(request: GenerateRequest) -> AsyncIterator[Update]:
            self._asked[request.id] = request
            return generate(request)

        return generate_and_remember


class SGLangClassesTarget(BundledTarget):
    """SGLang's own cache classes in the bundled stack's place; they have their own guards."""

    def __init__(self, scenario: Scenario, options: RunOptions, sessions: Sequence[Session]) -> None:
        """Load SGLang's classes. Raises UsageError where they are not installed."""
        from repro.engines.sglang import pinned  # loads torch, which a run in stamps does without

        pinned.load()
        self.versions = {"sglang": pinned.VERSION}
        super().__init__(scenario, options, sessions, Guards())

    def _build_engine(self) -> RunnableEngine:
        from repro.engines.sglang.classes.engine import SglangEngine

        awaits_index = "hicache_early_read" not in self._defects
        model = self.checkpoint.model
        return SglangEngine(self.config, model, self.device, self._injector, awaits_index=awaits_index)


def everything(name: str) -> bool:
    """Return that an operation of this name stands alone."""
    return True


def _death_of(engine: asyncio.Task[None]) -> ReproError:
    error = engine.exception()
    if isinstance(error, ReproError):  # raised by a listener: its disk is full
        return error
    died = HarnessError(f"the bundled engine died: {error!r}; this is a bug of the stack")
    died.__cause__ = error
    return died
