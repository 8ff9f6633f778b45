"""A decode worker: an engine for requests whose prompts a prefill worker computes and writes into its pages."""

import asyncio
from collections import deque
from dataclasses import dataclass, field

import msgspec
import numpy as np

from repro.base.probe import CacheEvent, PageEvent, Probes
from repro.serve.config import EngineConfig
from repro.serve.device.base import Device
from repro.serve.engine import Engine, LoadedModel, Role
from repro.serve.guards import Guards
from repro.serve.kv.page import PageAllocator, PageChange
from repro.serve.kv.pool import Names, Pages
from repro.serve.pd.messages import Abort, Destination, Done, Message, Safe
from repro.serve.pd.network import Network
from repro.serve.pd.ownership import DECODE_SIDE, Ownership, Stage
from repro.serve.pd.transfer import RemoteMemory, SlotReader, Slots
from repro.serve.pd.work import Work
from repro.serve.sched.release import ABORTED
from repro.serve.sched.request import Request
from repro.serve.sched.sampling import Sampled
from repro.serve.types import GenerateRequest


@dataclass(eq=False)
class _Waiting:
    """A request that has no pages yet."""

    room: int
    request: Request
    prefill: str


@dataclass(eq=False)
class _Reservation:
    """Pages and a slot that a prefill worker may write into."""

    room: int
    request: Request
    prefill: str
    pages: Pages
    slot: int
    granted: int
    slot_held: bool = True
    ownership: Ownership = field(default_factory=lambda: Ownership(DECODE_SIDE, Stage.ALLOCATED))
    safe: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def awaited(self) -> bool:
        """Return whether the request still waits for its rows."""
        return self.ownership.stage in (Stage.ALLOCATED, Stage.PREFILL_QUEUED)


class DecodeWorker(Role):
    """One decode worker (`network.Receiver`)."""

    def __init__(
        self,
        config: EngineConfig,
        model: LoadedModel,
        device: Device,
        guards: Guards,
        probes: Probes,
        names: Names,
        network: Network,
    ) -> None:
        assert config.pd is not None
        self.device = device
        self.alive = True
        self._pd = config.pd
        self._guards = guards
        self._probes = probes
        self._names = names
        self._network = network
        engine_config = msgspec.structs.replace(
            config,
            pd=None,
            hicache=False,
            host_pages=1,
            prefix_cache=False,
            device_pages=self._pd.decode_pages or config.device_pages,
        )
        self.engine = Engine(engine_config, model, device, guards, probes, names=names, role=self)
        slots = Slots(device.named("slots"), self._pd.slots)
        self.memory = RemoteMemory(self.engine.pool, slots)
        self._slots = PageAllocator(self._pd.slots, config.free_list, self._slot_changed)
        self._slot_reader = SlotReader(device, slots, names, probes)
        self._queue: deque[_Waiting] = deque()
        self._reservations: dict[int, _Reservation] = {}
        self._work = Work(device.name, self.engine)
        self.quarantined_pages = 0

    async def run(self) -> None:
        """Serve until the engine is stopped."""
        await self._work.run()
        self.alive = False

    def submit(self, room: int, wire: GenerateRequest, prefill: str) -> Request:
        """Queue a request whose prompt `prefill` will compute. Raises RejectedError."""
        request = self.engine.scheduler.admission.register(wire, len(self._queue))
        self._queue.append(_Waiting(room, request, prefill))
        asyncio.get_running_loop().call_later(self._pd.transfer_timeout_s, self._expire, room, request)
        self.engine.wake()
        return request

    @property
    def waiting_requests(self) -> int:
        """Return how many requests wait for pages or for their rows."""
        return len(self._queue) + sum(held.awaited for held in self._reservations.values())

    # -- messages -------------------------------------------------------------------------------------

    def receive(self, message: Message) -> None:
        """Take a message; see `network.Receiver`. A message that is late or a duplicate changes nothing."""
        match message:
            case Done():
                self._done(message)
            case Safe():
                self._became_safe(message.room)
            case _:
                raise AssertionError(f"{message} is not for a decode worker")

    def _done(self, message: Done) -> None:
        held = self._reservations.get(message.room)
        if held is None or held.ownership.stage is not Stage.PREFILL_QUEUED:
            return
        if message.ok:
            held.ownership.move(Stage.WRITE_COMPLETED)
            held.request.cached_device_tokens = message.cached_device_tokens
            held.request.cached_host_tokens = message.cached_host_tokens
            self._work.start(self._adopt(held))
        else:  # no write of the request is on its way
            self.engine.scheduler.release.finish(held.request, ABORTED)
            self._reclaim_slot(held)
            self._reclaim_pages(held)

    def _became_safe(self, room: int) -> None:
        held = self._reservations.get(room)
        if held is None:
            return
        held.safe.set()
        if held.ownership.stage is Stage.QUARANTINED:
            self.quarantined_pages -= len(held.pages)
            self._reclaim_slot(held)
            self._reclaim_pages(held)

    # -- a request's way ----------------------------------------------------------------------------------

    def _reserve(self, waiting: _Waiting) -> bool:
        """Give a request the pages of its prompt and a slot; False without room for its longest answer."""
        scheduler, cache = self.engine.scheduler, self.engine.cache
        request = waiting.request
        promised = scheduler.admission.promised_pages + sum(
            self._answer_pages(held.request) for held in self._reservations.values() if held.request.state != "finished"
        )
        needed = self._prompt_pages(request) + self._answer_pages(request)
        if cache.available_pages - promised < needed or not self._slots.free_pages:
            return False
        pages = cache.allocate(self._prompt_pages(request), request.id)
        slot = self._slots.alloc(1, request.id)
        assert pages is not None and slot is not None
        granted = self.device.tick()
        held = _Reservation(waiting.room, request, waiting.prefill, pages, int(slot[0]), granted)
        self._reservations[waiting.room] = held
        self._work.start(self._offer(held))
        return True

    async def _offer(self, held: _Reservation) -> None:
        """Send the pages to the prefill worker, once no step of this worker touches them any more."""
        last_use = self.engine.cache.last_use(held.pages)
        if last_use is not None:
            await self._guards.waits.before_pages_offered(last_use)
        if held.request.state == "finished":  # given up meanwhile; no prefill worker has the pages' addresses
            self._reclaim_slot(held)
            self._reclaim_pages(held)
            return
        held.ownership.move(Stage.PREFILL_QUEUED)
        self._network.send(self.device, held.prefill, Destination(held.room, held.pages, held.slot, held.granted))

    async def _adopt(self, held: _Reservation) -> None:
        """Read the first token and let the request decode."""
        request = held.request
        first = await self._slot_reader.read(held.slot, held.room, request.id, len(request.prompt))
        self._reclaim_slot(held)
        del self._reservations[held.room]
        self.engine.scheduler.admission.adopt(request, held.pages, first)

    def _expire(self, room: int, request: Request) -> None:
        held = self._reservations.get(room)
        if held is not None and held.awaited:
            self._give_up(held)
        elif any(waiting.room == room for waiting in self._queue):
            request.aborted = True
            self.engine.wake()

    def _give_up(self, held: _Reservation) -> None:
        """End a request that waits for its rows, and get its pages back."""
        self.engine.scheduler.release.finish(held.request, ABORTED)
        self._emit("transfer_abort", held)
        if held.ownership.stage is Stage.PREFILL_QUEUED:
            held.ownership.move(Stage.ABORT_REQUESTED)
            self._work.start(self._reclaim(held))

    async def _reclaim(self, held: _Reservation) -> None:
        safe = self._work.start(self._guards.waits.before_reclaim(lambda: self._ask_for_safety(held)))
        if await self._guards.waits.before_slot_reuse(safe):
            self._reclaim_slot(held)
        if await safe:
            self._reclaim_pages(held)
        else:
            held.ownership.move(Stage.QUARANTINED)
            self.quarantined_pages += len(held.pages)
            self._emit("quarantine", held)

    async def _ask_for_safety(self, held: _Reservation) -> bool:
        """Send the abort until the prefill worker answers that the pages are safe; False without an answer."""
        for _ in range(self._pd.ack_tries):
            self._network.send(self.device, held.prefill, Abort(held.room, self.device.name))
            try:
                async with asyncio.timeout(self._pd.ack_timeout_s):
                    await held.safe.wait()
                    return True
            except TimeoutError:
                continue
        return False

    def _reclaim_pages(self, held: _Reservation) -> None:
        if held.ownership.stage is not Stage.ALLOCATED:
            held.ownership.move(Stage.SAFE_TO_RECLAIM)
        held.ownership.move(Stage.REUSABLE)
        self.engine.cache.release(held.pages)
        del self._reservations[held.room]
        self.engine.wake()

    def _reclaim_slot(self, held: _Reservation) -> None:
        if held.slot_held:
            held.slot_held = False
            self._slots.free(np.array([held.slot], np.int32))

    # -- the engine's role ----------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Return whether a request waits for its rows, or pages wait to be safe."""
        kept = (held for held in self._reservations.values() if held.ownership.stage is not Stage.QUARANTINED)
        return bool(self._queue) or self._work.busy or any(True for _ in kept)

    @property
    def outside_pages(self) -> int:
        """Return how many pages prefill workers may write into."""
        return sum(len(held.pages) for held in self._reservations.values())

    def between_steps(self) -> None:
        """Drop the aborted requests, and reserve pages for those that have waited longest."""
        for waiting in [waiting for waiting in self._queue if waiting.request.aborted]:
            self._queue.remove(waiting)
            self.engine.scheduler.release.finish(waiting.request, ABORTED)
            self._network.send(self.device, waiting.prefill, Abort(waiting.room, self.device.name))
        for held in [held for held in self._reservations.values() if held.awaited and held.request.aborted]:
            if held.request.state != "finished":
                self._give_up(held)
        while self._queue and self._reserve(self._queue[0]):
            self._queue.popleft()

    def prefilled(self, request: Request, first: Sampled) -> bool:
        """Raise AssertionError: a decode worker computes no prompt."""
        raise AssertionError(f"{request.id} was prefilled on a decode worker")

    # -- sizes ------------------------------------------------------------------------------------------

    def _prompt_pages(self, request: Request) -> int:
        return -(-len(request.prompt) // self.engine.config.page_tokens)

    def _answer_pages(self, request: Request) -> int:
        """Return how many pages the longest answer takes beyond the prompt's."""
        return -(-request.limit // self.engine.config.page_tokens) - self._prompt_pages(request)

    def _emit(self, what: str, held: _Reservation) -> None:
        tokens = len(held.pages) * self.engine.config.page_tokens
        self._probes.emit(CacheEvent(what, tokens, self.device.now_us, held.request.id))

    def _slot_changed(self, what: PageChange, slots: Pages, owner: str) -> None:
        number = self._names.page_sets.intern(slots)
        tick, now_us = self.device.tick(), self.device.now_us
        self._probes.emit(PageEvent(what, self.device.named("slots"), number, owner, tick, now_us))
