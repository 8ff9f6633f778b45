"""The ranks as one executor: one scheduler plans, in the process of rank 0, and every rank carries it out.

    Engine ── launch, load, write ──> rank 0 (called)
                                 └──> rank 1 ... N-1 (by message, in order)

All ranks use the same page numbers, so that one radix tree and one free list serve them all; a transfer has
ended when every rank has answered so.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from repro.base.probe import HostMessage, Probes
from repro.serve.config import EngineConfig
from repro.serve.device.base import Device, Event
from repro.serve.kv.copier import Done, Loading, Writing
from repro.serve.kv.loadback import RING_SLOTS
from repro.serve.kv.pool import KVPool, Pages, Place
from repro.serve.layersplit.collective import CollectiveError
from repro.serve.layersplit.messages import Ended, Load, Message, Step, Stop, Write
from repro.serve.layersplit.rank import Rank
from repro.serve.layersplit.sequence import touched_pages
from repro.serve.layersplit.simulated import SimGroup
from repro.serve.layersplit.work import RankWork
from repro.serve.sched.batch import Batch
from repro.serve.sched.sampling import Chosen

WAITS_MAX = 1000  # a step in which no rank is missing may be slow


@dataclass(eq=False)
class GroupDone:
    """A transfer of all ranks (`copier.Done`)."""

    first: Done  # the part of rank 0
    waiting: dict[int, None]  # ranks that have not answered that their part has ended
    all_answered: asyncio.Event = field(default_factory=asyncio.Event)

    def query(self) -> bool:
        """Return whether every rank's part has ended."""
        return self.first.query() and not self.waiting

    async def synchronize(self, why: str) -> None:
        """Wait until every rank's part has ended."""
        await self.first.synchronize(why)
        if self.waiting:
            await self.all_answered.wait()

    def answered(self, rank: int) -> None:
        """Note that a rank's part has ended."""
        self.waiting.pop(rank, None)
        if not self.waiting:
            self.all_answered.set()


@dataclass(frozen=True)
class GroupWork:
    """A step of all ranks (`worker.Work`), which the host follows on rank 0."""

    first: RankWork  # of rank 0
    group: "RankGroup"

    @property
    def batch(self) -> Batch:
        return self.first.batch

    @property
    def done(self) -> Event:
        return self.first.done

    @property
    def result(self) -> Chosen | None:
        return self.first.result

    async def finished(self) -> None:
        """Wait until the step has run. Raises CollectiveError when a rank keeps the others waiting too long."""
        await self.group.watched(self.first)


class RankGroup:
    """All ranks (`worker.Executor` and `copier.Copier`)."""

    def __init__(self, config: EngineConfig, ranks: list[Rank], group: SimGroup, probes: Probes) -> None:
        assert config.layersplit is not None
        self._config = config
        self._settings = config.layersplit
        self._ranks = ranks
        self._first, *self._others = ranks
        self._group = group
        self._probes = probes
        self._transfers: dict[int, GroupDone] = {}
        self._loads: list[GroupDone] = []

    @property
    def pools(self) -> dict[Place, KVPool]:
        """Return rank 0's pools: the others' have the same pages."""
        return self._first.pools

    @property
    def copier(self) -> "RankGroup":
        """Return what copies between the tiers: every rank its own layers."""
        return self

    @property
    def description(self) -> dict[str, object]:
        """Return who keeps which layers."""
        kept = [rank.pools["device"].layer_numbers for rank in self._ranks]
        return {"layersplit_kept_layers": [[layers.start, layers.stop] for layers in kept]}

    # -- steps --------------------------------------------------------------------------------------------

    def launch(self, batch: Batch) -> GroupWork:
        """Enqueue a step on every rank."""
        staging = batch.staging
        step = Step(
            number=batch.number,
            prefill=batch.prefill,
            members=batch.members,
            block_pages=tuple(staging.pages),
            seats=tuple(staging.prompts),
            load=batch.loads.transfer if batch.loads is not None else 0,
            touched=touched_pages(batch, self._config.page_tokens),
        )
        self._send(step)
        return GroupWork(self._first.forward.launch(batch, step.touched), self)

    async def watched(self, work: RankWork) -> None:
        """Wait for a step; raises CollectiveError when a rank has not come to a call that others wait in.

        A step that is only slow goes on: all its calls have been enqueued, and nothing is lost.
        """
        missing = "all ranks came, and the step does not end"
        for _ in range(WAITS_MAX):
            try:
                async with asyncio.timeout(self._settings.timeout_s):
                    return await work.finished()
            except TimeoutError:
                if absent := self._group.missing():
                    missing = absent
                    break
        raise CollectiveError(
            f"step {work.batch.number} has not ended within layersplit.timeout_s = {self._settings.timeout_s}: "
            f"{missing}; a rank has died or hangs: restart the stack"
        )

    # -- transfers (copier.Copier) ------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Return whether every rank has a slot free for another load-back."""
        self._loads = [load for load in self._loads if not load.query()]
        return self._first.copier.ready and len(self._loads) < RING_SLOTS

    def load(self, number: int, source: Pages, target: Pages, last_step: int) -> Loading:
        """Start a load-back on every rank."""
        load = Load(number, source, target, last_step)
        self._send(load)
        loading = self._first.load(load)
        done = self._awaited(number, loading.done)
        self._loads.append(done)
        return Loading(loading.events, done)

    def write(self, number: int, source: Pages, target: Pages) -> Writing:
        """Start a write-back on every rank."""
        write = Write(number, source, target)
        self._send(write)
        writing = self._first.write(write)
        return Writing(self._awaited(number, writing.done), writing.copies)

    def step_enqueued(self, step: int, done: Event) -> None:
        """Nothing to do: each rank has noted its own event when it enqueued the step."""

    def step_done(self, step: int) -> Event | None:
        """Return the event behind a step on rank 0."""
        return self._first.copier.step_done(step)

    def _awaited(self, number: int, first: Done) -> GroupDone:
        done = GroupDone(first, dict.fromkeys(range(1, len(self._ranks))))
        if done.waiting:
            self._transfers[number] = done
        return done

    # -- messages -----------------------------------------------------------------------------------------

    def _send(self, message: Message) -> None:
        for rank in self._others:
            self._later(self._first.device, rank.device, type(message).__name__.lower(), partial(rank.receive, message))

    def _later(self, source: Device, target: Device, what: str, deliver: Callable[[], None]) -> None:
        """Deliver after the latency, counted from the sender's host time."""
        sent = source.tick()

        def arrive() -> None:
            self._probes.emit(HostMessage(what, source.name, sent, target.name, target.tick(), target.now_us))
            deliver()

        asyncio.get_running_loop().call_later(self._settings.message_us / 1e6, arrive)

    async def run(self) -> None:
        """Run the ranks that are processes of their own, until `stop`."""
        async with asyncio.TaskGroup() as group:
            for number, rank in enumerate(self._others, 1):
                group.create_task(rank.run(partial(self._answer, number)), name=rank.device.name)

    def stop(self) -> None:
        """Send the last message."""
        self._send(Stop())

    def _answer(self, rank: int, ended: Ended) -> None:
        """Carry a rank's answer to the scheduler's process."""
        answered = partial(self._answered, ended.number, rank)
        self._later(self._ranks[rank].device, self._first.device, "ended", answered)

    def _answered(self, number: int, rank: int) -> None:
        done = self._transfers[number]
        done.answered(rank)
        if not done.waiting:
            del self._transfers[number]
