"""A running OpenAI-compatible server, or SGLang's own API, driven in real time."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import msgspec

from repro.base.errors import TargetError, UsageError
from repro.base.rng import bits64
from repro.load.again import Asked, AskedAgain, RememberingClient, ask_again
from repro.load.clean import ASKED_FOR, Checks, check_answers
from repro.load.client import ChatClient, ServerFacts, open_client
from repro.load.driver import drive
from repro.load.listener import LoadListener, OnlineFinding
from repro.load.plan import LoadResult
from repro.load.wire import Api
from repro.record.requests import SentRequest
from repro.run.limits import LimitWatch
from repro.run.targets.base import Load

FACTS_TIMEOUT_S = 30.0  # a server that is up says what it serves at once, however busy
TIMER_SLACK_S = 0.1  # a loop's clock may be that much ahead


@dataclass(frozen=True)
class Checking:
    """That a server's answers are checked after the load, past what the load has cached (`load.clean`)."""

    tokens_max: int  # all checks together, prompts included
    model: str = ""  # the only one that the server may serve; "": any


class Server(LoadListener):
    """Drives a load, then asks suspects again and checks answers. Raises UsageError for what is no URL."""

    def __init__(self, url: str, api: Api = "chat", checking: Checking | None = None) -> None:
        self.asked_again = AskedAgain()  # its lone answers to suspects, after the load
        self.checks = Checks()  # checks of its answers, where `checking` asks for them
        self.context_tokens_max: int | None = None
        self._checking = checking
        self._client = RememberingClient(open_client(url).http, api=api, extra=ASKED_FOR[api] if checking else {})
        self._suspects: dict[str, None] = {}

    @property
    def model(self) -> str:
        """Return the name of the model that it serves, once it has been asked."""
        return self._client.model

    def drive(self, load: Load) -> LoadResult:
        """Run the whole load to its end, in real time; Ctrl-C returns what was done.

        Raises TargetError for a server that cannot be asked, UsageError for one that serves another model.
        """
        return run_real(self._drive(load))

    def on_finding(self, request: str, finding: OnlineFinding) -> None:
        """Remember a request that an online detector convicts: it is asked again."""
        self._suspects[request] = None

    def on_request(self, request: SentRequest) -> None:
        """Forget how a request was asked that need not be asked again."""
        if request.request not in self._suspects and self._checking is None:
            self._client.asked.pop(request.request, None)

    async def _drive(self, load: Load) -> LoadResult:
        client = self._client
        try:
            facts = await _facts(client)
            self._take(facts)
            plan = load.plan
            if plan.context_tokens_max is None:
                plan = msgspec.structs.replace(plan, context_tokens_max=facts.context_tokens_max)
            driving = asyncio.create_task(drive(load.sessions, client, plan, self, *load.listeners), name="load")
            await _bounded(driving, load.limits)
            answered = [each for each in client.asked.values() if each.answer.text and not each.answer.error_kind]
            if load.limits.cut is None:
                asks = [client.asked[request].ask for request in self._suspects]
                asking = ask_again(client, asks, self.asked_again, load.on_check)
                await _bounded(asyncio.create_task(asking, name="again"), load.limits)
            if self._checking is not None and load.limits.cut is None:
                checking = self._check(answered, load, self._checking.tokens_max)
                await _bounded(asyncio.create_task(checking, name="check"), load.limits)
            return _with_loss(driving.result(), self.checks.lost)
        finally:
            await client.http.aclose()

    def _take(self, facts: ServerFacts) -> None:
        self._client.model, self.context_tokens_max = facts.model, facts.context_tokens_max
        if self._checking is not None and self._checking.model not in ("", facts.model):
            raise UsageError(
                f"--calibration is of the model {self._checking.model}, and the target serves {facts.model}; "
                "`repro calibrate` makes one for it"
            )

    async def _check(self, answered: list[Asked], load: Load, tokens_max: int) -> None:
        """Check answers of the load, suspects first, the others in an order that the seed draws."""
        answered.sort(key=lambda each: bits64(load.plan.seed, "check", each.ask.request))
        answered.sort(key=lambda each: each.ask.request not in self._suspects)
        await check_answers(self._client, answered, self.checks, tokens_max=tokens_max, done=load.on_check)


def _with_loss(result: LoadResult, lost: str) -> LoadResult:
    """Return a load's result, with the error of a server that was lost after the load."""
    return msgspec.structs.replace(result, target_lost=lost) if lost and not result.target_lost else result


async def _bounded(work: "asyncio.Task[Any]", limits: LimitWatch) -> None:
    """Wait for a task; a limit or Ctrl-C cancels it. Raises what the task raises."""
    limits.may_cancel(work)
    timer = asyncio.get_running_loop().call_later(limits.seconds_left + TIMER_SLACK_S, limits.check_time)
    try:
        await asyncio.wait((work,))
    except asyncio.CancelledError:  # Ctrl-C: what was done counts
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
