"""A prefill worker: an engine that computes prompts and writes their rows to where they decode."""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field

import msgspec
import numpy as np

from repro.base import probe
from repro.base.probe import CacheEvent, Probes, RequestEvent, Tokens
from repro.serve.config import EngineConfig
from repro.serve.device.base import Device, Event
from repro.serve.device.cost import PRESETS
from repro.serve.engine import Engine, LoadedModel, Role
from repro.serve.guards import Guards
from repro.serve.kv.pool import Names
from repro.serve.pd.messages import Abort, Destination, Done, Message, Safe, Submit
from repro.serve.pd.network import Network
from repro.serve.pd.ownership import PREFILL_SIDE, Ownership, Stage
from repro.serve.pd.transfer import Flight, Lanes, RemoteMemory
from repro.serve.pd.work import Work
from repro.serve.sched.batch import Batch
from repro.serve.sched.request import Request
from repro.serve.sched.sampling import Sampled
from repro.serve.types import GenerateRequest, RejectedError

ROOMS_MAX = 65_536  # aborted rooms that are remembered: their destination may still be on its way


class _PromptProbes:
    """The probes of a prefill worker without its events of tokens and ends, which the decode worker emits."""

    def __init__(self, probes: Probes) -> None:
        self._emit = probes.emit
        self.hit, self.carried_out, self.overtaken = probes.hit, probes.carried_out, probes.overtaken

    def emit(self, event: probe.Event) -> None:
        """Pass an event on, unless the decode worker emits it too."""
        if not isinstance(event, Tokens) and (not isinstance(event, RequestEvent) or event.what == "admitted"):
            self._emit(event)


@dataclass(eq=False)
class _Send:
    """One prompt on its way to a decode worker."""

    room: int
    wire: GenerateRequest
    decode: str
    ownership: Ownership = field(default_factory=lambda: Ownership(PREFILL_SIDE, Stage.PREFILL_QUEUED))
    destination: Destination | None = None
    request: Request | None = None  # once it is in the engine
    posted_pages: int = 0
    flights: list[Flight] = field(default_factory=list)
    aborted: bool = False

    async def drained(self) -> None:
        """Return when every write posted so far has completed."""
        for flight in self.flights:
            await flight.done.synchronize("the posted writes have completed")


class PrefillWorker(Role):
    """One prefill worker (`network.Receiver`)."""

    def __init__(
        self,
        config: EngineConfig,
        model: LoadedModel,
        device: Device,
        guards: Guards,
        probes: Probes,
        names: Names,
        network: Network,
        remote: dict[str, RemoteMemory],
    ) -> None:
        assert config.pd is not None
        self.device = device
        self.alive = True
        self.killed = False
        self._pd = config.pd
        self._guards = guards
        self._probes = probes
        self._network = network
        self._remote = remote
        engine_config = msgspec.structs.replace(config, pd=None)
        self.engine = Engine(engine_config, model, device, guards, _PromptProbes(probes), names=names, role=self)
        self._lanes = Lanes(
            device,
            self.engine.pool,
            names,
            PRESETS[config.cost],
            guards,
            probes,
            lanes=self._pd.lanes,
            group_pages=config.copy_group_pages,
        )
        self._sends: dict[int, _Send] = {}
        self._of_request: dict[str, _Send] = {}
        self._aborted_rooms: OrderedDict[int, None] = OrderedDict()
        self._work = Work(device.name, self.engine)

    async def run(self) -> None:
        """Serve until the engine is stopped, or until a fault kills this worker."""
        await self._work.run()
        self.alive = False

    @property
    def load(self) -> int:
        """Return how many prompts wait or are being computed or sent."""
        return len(self._sends)

    def cached_pages(self, request: GenerateRequest) -> int:
        """Return how much of a prompt is cached here, on any tier, as far as the router knows."""
        return self.engine.scheduler.admission.cached_pages(request)

    # -- messages -------------------------------------------------------------------------------------

    def receive(self, message: Message) -> None:
        """Take a message; see `network.Receiver`."""
        match message:
            case Submit():
                self._submitted(message)
            case Destination():
                self._directed(message)
            case Abort():
                self._aborted(message)
            case _:
                raise AssertionError(f"{message} is not for a prefill worker")

    def _submitted(self, message: Submit) -> None:
        if message.room in self._aborted_rooms:
            return
        self._sends[message.room] = _Send(message.room, message.request, message.decode)
        asyncio.get_running_loop().call_later(self._pd.destination_timeout_s, self._expire, message.room)

    def _directed(self, message: Destination) -> None:
        """Start the prompt. A late destination of an aborted one is ignored: another request may own the pages."""
        send = self._sends.get(message.room)
        if send is None or send.aborted or send.destination is not None:
            return
        send.destination = message
        wire = send.wire
        once = msgspec.structs.replace(wire.sampling, max_tokens=1, stop=())
        try:
            send.request = self.engine.scheduler.admission.submit(msgspec.structs.replace(wire, sampling=once))
        except RejectedError:
            self._fail(send)
            return
        self._of_request[wire.id] = send
        self.engine.wake()

    def _aborted(self, message: Abort) -> None:
        self._remember_aborted(message.room)
        send = self._sends.get(message.room)
        if send is None:
            self._network.send(self.device, message.decode, Safe(message.room))
        elif not send.aborted:
            send.aborted = True
            send.ownership.move(Stage.ABORT_OBSERVED)
            self._work.start(self._give_up(send))

    def _expire(self, room: int) -> None:
        send = self._sends.get(room)
        if send is not None and send.destination is None and not send.aborted:
            self._remember_aborted(room)
            self._fail(send)

    def _fail(self, send: _Send) -> None:
        """Refuse a prompt of which nothing was written."""
        self._forget(send)
        self._network.send(self.device, send.decode, Done(send.room, ok=False))

    async def _give_up(self, send: _Send) -> None:
        """Drop an aborted prompt; once its pages are safe, send that they are."""
        drained = asyncio.ensure_future(send.drained())
        await self._guards.waits.before_safe_to_reclaim(drained)
        self._network.send(self.device, send.decode, Safe(send.room))
        await drained
        send.ownership.move(Stage.DRAINED)
        if send.request is not None and send.request.state != "held":  # `_release` takes back the pages of a held one
            self.engine.abort(send.request.id)
        self._forget(send)

    # -- the engine's role ----------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Return whether a prompt is still being sent."""
        return self._work.busy

    def between_steps(self) -> None:
        """Die if a fault asks for it."""
        decision = self._probes.hit("pd.prefill_worker", self.device.name)
        if decision is not None:
            self._die()

    def step_launched(self, batch: Batch, done: Event) -> None:
        """Post the transfer of the pages that this step completes."""
        if not batch.prefill:
            return
        size = self.engine.config.page_tokens
        for member in batch.members:
            send = self._of_request.get(member.request.id)
            if send is None or send.aborted:
                continue
            last = member.end >= len(member.request.prompt)
            complete = -(-member.end // size) if last else member.end // size
            if complete == send.posted_pages:
                continue
            self._post(send, complete, done, last=last)

    def _post(self, send: _Send, complete: int, stored: Event, *, last: bool) -> None:
        assert send.request is not None and send.destination is not None
        if send.ownership.stage is Stage.PREFILL_QUEUED:
            send.ownership.move(Stage.WRITE_ISSUED)
        source = np.asarray(send.request.pages[send.posted_pages : complete], np.int32)
        flight = self._lanes.write_chunk(
            len(send.flights),
            source,
            send.posted_pages,
            self._remote[send.decode],
            send.destination,
            send.request.id,
            stored,
            last=last,
        )
        send.flights.append(flight)
        send.posted_pages = complete
        tokens = len(source) * self.engine.config.page_tokens
        self._probes.emit(CacheEvent("transfer", tokens, self.device.now_us, send.request.id))

    def prefilled(self, request: Request, first: Sampled) -> bool:
        """Keep the prompt's pages until they are sent."""
        written = self._work.start(self._finish(self._of_request[request.id], first))
        self._work.start(self._release(request, written))
        return True

    async def _finish(self, send: _Send, first: Sampled) -> None:
        """Send the first token behind the rows, and then the message that both have arrived."""
        await send.drained()
        if send.aborted:
            return
        assert send.request is not None and send.destination is not None
        failed = frozenset(component for flight in send.flights for component in flight.failed)
        arrived = self._guards.decisions.transfer_arrived(failed)
        if arrived:
            memory = self._remote[send.decode]
            send.flights.append(self._lanes.write_slot(memory, send.destination, send.request.id, first))
            await send.drained()
            if send.aborted:
                return
        send.ownership.move(Stage.WRITE_COMPLETED)
        request = send.request
        done = Done(send.room, arrived, request.cached_device_tokens, request.cached_host_tokens)
        self._network.send(self.device, send.decode, done)
        self._forget(send)

    async def _release(self, request: Request, written: "asyncio.Task[None]") -> None:
        await self._guards.waits.before_source_release(asyncio.shield(written))
        self.engine.scheduler.release.let_go(request)
        self.engine.wake()

    # -- housekeeping -----------------------------------------------------------------------------------

    def _forget(self, send: _Send) -> None:
        self._sends.pop(send.room, None)
        self._of_request.pop(send.wire.id, None)

    def _remember_aborted(self, room: int) -> None:
        self._aborted_rooms[room] = None
        if len(self._aborted_rooms) > ROOMS_MAX:
            self._aborted_rooms.popitem(last=False)

    def _die(self) -> None:
        """Stop at once, as a killed process does. What was posted still lands."""
        self.alive, self.killed = False, True
        self._work.kill()
