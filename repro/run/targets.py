"""Where the load goes: the bundled stack, simulated in this process, or a server at a URL."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec
import torch
from tokenizers import Tokenizer

from repro.base.clock import run_virtual
from repro.base.errors import HarnessError, ReproError, TargetError, UsageError
from repro.base.probe import NullProbes, Probes
from repro.base.rng import bits64
from repro.load.again import Asked, AskedAgain, RememberingClient, ask_again
from repro.load.asgi import AsgiStreamTransport
from repro.load.clean import ASKED_FOR, Checks, check_answers
from repro.load.client import ChatClient, ServerFacts, open_client
from repro.load.driver import drive
from repro.load.listener import LoadListener, OnlineFinding
from repro.load.plan import LoadPlan, LoadResult
from repro.load.wire import Api
from repro.record.requests import SentRequest
from repro.run.limits import LimitWatch
from repro.schedule.pickers import Pick, timed
from repro.serve.config import EngineConfig
from repro.serve.device.sim import SimDevice
from repro.serve.engine import LoadedModel, checkpoint_folder, load
from repro.serve.guards import Guards
from repro.serve.kv.pool import KVPool
from repro.serve.server.app import create_app
from repro.serve.server.chat import ChatEncoder
from repro.serve.stack import build
from repro.serve.types import EngineStats, GenerateRequest, ServingEngine, Update
from repro.trace.format import Session

FACTS_TIMEOUT_S = 30.0  # a server that is up says what it serves at once, however busy
TIMER_SLACK_S = 0.1  # a loop's clock may be that much ahead


@dataclass(frozen=True)
class Load:
    """What to drive, who listens while it runs, and what ends it early."""

    sessions: Sequence[Session]
    plan: LoadPlan
    listeners: Sequence[LoadListener]
    limits: LimitWatch

    def on_check(self, number: int, total: int) -> None:
        """Tell the listeners how many answers have been asked for again."""
        for listener in self.listeners:
            listener.on_check(number, total)


Generate = Callable[[GenerateRequest], AsyncIterator[Update]]


class Served(ServingEngine, Protocol):
    """An engine that a target runs beside its clients."""

    @property
    def memory(self) -> tuple[KVPool, ...]:
        """Return every pool that a corrupting fault may change."""

    async def run(self) -> None:
        """Serve until `stop`."""

    def stop(self) -> None:
        """Let `run` return once the running requests have ended."""


Build = Callable[[EngineConfig, LoadedModel, SimDevice, Guards, Probes], Served]


@dataclass
class KeptRequests:
    """What the engine was asked, by request id: the oracle asks it again."""

    requests: dict[str, GenerateRequest] = field(default_factory=dict)

    def keeping(self, generate: Generate) -> Generate:
        """Return a `generate` that remembers what it was asked."""

        def generate_and_keep(request: GenerateRequest) -> AsyncIterator[Update]:
            self.requests[request.id] = request
            return generate(request)

        return generate_and_keep


@dataclass(frozen=True)
class Checkpoint:
    """A model with its tokenizer, loaded once and shared by the stack and the oracle."""

    model: LoadedModel
    tokenizer: Tokenizer
    encoder: ChatEncoder


def load_checkpoint(config: EngineConfig) -> Checkpoint:
    """Return the checkpoint that `config` names. Raises UsageError for one that is not there or not whole."""
    path = checkpoint_folder(config) / "tokenizer.json"
    try:
        text = path.read_text(encoding="utf-8")
        encoder = ChatEncoder(text)
    except OSError as error:
        wanted = 'give a folder with config.json, tokenizer.json and *.safetensors, or model = "bundled"'
        raise UsageError(f"{path}: cannot be read ({error.strerror}); {wanted}") from error
    except Exception as error:  # the tokenizers package raises no other type
        raise UsageError(f"{path}: not a tokenizer that the tokenizers package reads: {error}") from error
    return Checkpoint(load(config, encoder.decode), Tokenizer.from_str(text), encoder)


class BundledTarget:
    """The bundled stack on a simulated device, client and server in one virtual time.

    `build` may put another engine in its place, which `guards` mean nothing to.
    """

    def __init__(
        self,
        config: EngineConfig,
        checkpoint: Checkpoint,
        *,
        guards: Guards | None = None,
        probes: Probes | None = None,
        pick: Pick = timed,
        seed: int = 0,
        build: Build = build,
    ) -> None:
        self.config = config
        self.context_tokens_max: int | None = config.context_tokens
        self.checkpoint = checkpoint
        self.kept = KeptRequests()
        self.stats: EngineStats | None = None
        self.on_memory: Callable[[Sequence[KVPool]], None] = lambda pools: None  # told before anything runs
        self.device = SimDevice(probes or NullProbes(), pick)
        self._guards = guards or Guards()
        self._probes = probes or NullProbes()
        self._seed = seed
        self._build = build

    def drive(self, load: Load) -> LoadResult:
        """Run the whole load to its end, in virtual time."""
        with torch.inference_mode():
            return run_virtual(self._serve(load), self.device)

    async def _serve(self, load: Load) -> LoadResult:
        loop = asyncio.get_running_loop()
        engine = self._build(self.config, self.checkpoint.model, self.device, self._guards, self._probes)
        self.on_memory(engine.memory)
        engine.generate = self.kept.keeping(engine.generate)  # type: ignore[method-assign, assignment]
        app = create_app(engine, self.checkpoint.tokenizer, clock=loop.time, seed=self._seed)
        client = open_client("http://bundled", transport=AsgiStreamTransport(app), read_timeout_s=None)
        running = asyncio.create_task(engine.run(), name="engine")
        driving = asyncio.create_task(_driven(load, client), name="load")
        load.limits.guard(driving)
        try:
            await asyncio.wait((running, driving), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:  # Ctrl-C: the driver delivers what there is
            load.limits.interrupt()
        if running.done():
            driving.cancel()
            await asyncio.wait((driving,))  # so that the requests under way are recorded
            raise _death_of(running)
        result = await driving
        engine.stop()
        await running
        self.stats = engine.stats()
        await client.http.aclose()
        return result


def _death_of(engine: "asyncio.Task[None]") -> ReproError:
    error = engine.exception()
    if isinstance(error, ReproError):  # of a listener: the disk is full
        return error
    died = HarnessError(f"the bundled engine died: {error!r}; this is a bug of the stack")
    died.__cause__ = error
    return died


@dataclass(frozen=True)
class Checking:
    """That a server's answers are checked after the load, past what the load has cached (`load.clean`)."""

    tokens_max: int  # all checks together, prompts included
    model: str = ""  # that the server must serve; "": any


class ServerTarget(LoadListener):
    """A running OpenAI-compatible server, or SGLang's own API. Raises UsageError for what is no URL."""

    def __init__(self, url: str, api: Api = "chat", checking: Checking | None = None) -> None:
        self.said_again = AskedAgain()  # what it says to suspects, alone, after the load
        self.checks = Checks()  # of its answers, where `checking` asks for them
        self.context_tokens_max: int | None = None
        self._checking = checking
        self._client = RememberingClient(open_client(url).http, api=api, extra=ASKED_FOR[api] if checking else {})
        self._suspects: dict[str, None] = {}

    @property
    def model(self) -> str:
        """Return the name of the model that it serves, once it has been asked."""
        return self._client.model

    def drive(self, load: Load) -> LoadResult:
        """Run the whole load to its end, in real time; Ctrl-C returns what there is.

        Raises TargetError for a server that cannot be asked, UsageError for one that serves another model.
        """
        return run_real(self._ask(load))

    async def _ask(self, load: Load) -> LoadResult:
        client = self._client
        try:
            facts = await _facts(client)
            client.model, self.context_tokens_max = facts.model, facts.context_tokens_max
            if self._checking is not None and self._checking.model not in ("", facts.model):
                raise UsageError(
                    f"--calibration is of the model {self._checking.model}, and the target serves {facts.model}; "
                    "`repro calibrate` makes one for it"
                )
            driving = asyncio.create_task(
                _driven(load, client, self, context_tokens_max=facts.context_tokens_max), name="load"
            )
            await _bounded(driving, load.limits)
            answered = [each for each in client.asked.values() if each.answer.text and not each.answer.error_kind]
            if not load.limits.reached:
                asks = [client.asked[request].ask for request in self._suspects]
                asking = ask_again(client, asks, self.said_again, load.on_check)
                await _bounded(asyncio.create_task(asking, name="again"), load.limits)
            if self._checking is not None and not load.limits.reached:
                checking = self._check(answered, load, self._checking.tokens_max)
                await _bounded(asyncio.create_task(checking, name="check"), load.limits)
            return _with_loss(driving.result(), self.checks.lost)
        finally:
            await client.http.aclose()

    async def _check(self, answered: list[Asked], load: Load, tokens_max: int) -> None:
        """Check answers of the load, suspects first, the others in an order that the seed draws."""
        answered.sort(key=lambda each: bits64(load.plan.seed, "check", each.ask.request))
        answered.sort(key=lambda each: each.ask.request not in self._suspects)
        await check_answers(self._client, answered, self.checks, tokens_max=tokens_max, done=load.on_check)

    def on_finding(self, request: str, finding: OnlineFinding) -> None:
        """Remember a request that an online detector convicts: it is asked again."""
        self._suspects[request] = None

    def on_request(self, request: SentRequest) -> None:
        """Forget how a request was asked that need not be asked again."""
        if request.request not in self._suspects and self._checking is None:
            self._client.asked.pop(request.request, None)


def _with_loss(result: LoadResult, lost: str) -> LoadResult:
    """Return the result of a load whose server went away afterwards, if it did."""
    return msgspec.structs.replace(result, target_lost=lost) if lost and not result.target_lost else result


async def _bounded(work: "asyncio.Task[Any]", limits: LimitWatch) -> None:
    """Wait for a task; a limit or Ctrl-C cancels it. Raises what the task raises."""
    limits.guard(work)
    timer = asyncio.get_running_loop().call_later(limits.seconds_left + TIMER_SLACK_S, limits.look)
    try:
        await asyncio.wait((work,))
    except asyncio.CancelledError:  # Ctrl-C: what there is counts
        limits.interrupt()
        await asyncio.wait((work,))
    timer.cancel()
    if not work.cancelled():
        work.result()


async def _facts(client: ChatClient) -> ServerFacts:
    try:
        async with asyncio.timeout(FACTS_TIMEOUT_S):
            return await client.facts()
    except TimeoutError as error:
        where = f"{client.http.base_url}v1/models"
        raise TargetError(f"{where}: no answer within {FACTS_TIMEOUT_S:.0f} s; is this the server's port?") from error


async def _driven(
    load: Load, client: ChatClient, *listeners: LoadListener, context_tokens_max: int | None = None
) -> LoadResult:
    plan = load.plan
    if context_tokens_max is not None and plan.context_tokens_max is None:
        plan = msgspec.structs.replace(plan, context_tokens_max=context_tokens_max)
    return await drive(load.sessions, client, plan, *listeners, *load.listeners)


def run_real(main: Coroutine[Any, Any, LoadResult]) -> LoadResult:
    """Run on a real event loop, uvloop where it is installed."""
    factory: Callable[[], asyncio.AbstractEventLoop] | None
    try:
        import uvloop

        factory = uvloop.new_event_loop
    except ImportError:
        factory = None
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main)
