"""One rank: its pools, its forward and its copies, and the process that carries out the scheduler's messages."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from repro.base.probe import Probes
from repro.serve.config import EngineConfig
from repro.serve.device.base import Device
from repro.serve.device.cost import PRESETS
from repro.serve.guards import Guards
from repro.serve.kv.copier import Done, Loading, TierCopier, Writing
from repro.serve.kv.loadback import LayerEvents
from repro.serve.kv.pool import Home, KVPool, Names, Place
from repro.serve.kv.reads import ReadCheck
from repro.serve.layersplit.broadcast import RankParts
from repro.serve.layersplit.collective import Collective
from repro.serve.layersplit.forward import RankForward
from repro.serve.layersplit.messages import Ended, Load, Message, Step, Stop, Write
from repro.serve.layersplit.partition import Partition
from repro.serve.layersplit.work import RankWork
from repro.serve.memory import Memory
from repro.serve.model.config import ModelConfig
from repro.serve.sched.batch import Batch
from repro.serve.sched.rows import DeviceRows, Staging
from repro.serve.worker import widths_of

if TYPE_CHECKING:  # compiles kernels, which numerics = "stamps" does without
    from repro.serve.model.glm5 import Glm5

LOADS_MAX = 8  # load-backs whose events are held for later steps


class Rank:
    """One rank. The scheduler calls rank 0 in its own process; each other rank is a process that `run`s on messages.

    `config` has the pages of a rank, which keeps some layers only: more than an engine that keeps them all.
    """

    def __init__(
        self,
        config: EngineConfig,
        shape: ModelConfig,
        weights: "Glm5 | None",
        device: Device,
        collective: Collective,
        guards: Guards,
        names: Names,
        probes: Probes,
    ) -> None:
        assert config.layersplit is not None
        self.device = device
        self.alive = True
        self._probes = probes
        cost, layers = PRESETS[config.cost], shape.num_hidden_layers
        partition = Partition(collective.rank, layers, config.layersplit)
        widths = widths_of(shape, weights)

        def pool(name: str, layers: range, pages: int) -> KVPool:
            tier = device.named(name)
            size, sums = config.page_tokens, config.checksums
            return KVPool(tier, len(layers), pages, size, widths, first_layer=layers.start, checksums=sums)

        self.pools: dict[Place, KVPool] = {
            "device": pool("device", partition.kept, config.device_pages),
            "host": pool("host", partition.kept, config.host_pages),
        }
        buffers = range(config.layersplit.scratch if len(partition.kept) < layers else 0)
        scratch = pool("scratch", buffers, config.device_pages)
        homes = tuple(
            Home(self.pools["device"], layer) if layer in partition.kept else Home(scratch, partition.buffer(layer))
            for layer in range(layers)
        )
        compute = device.stream("compute")
        self.copier = TierCopier(config, device, compute, self.pools, names, guards, cost, layers)
        rows = DeviceRows(config.rows, config.context_tokens, config.page_tokens)
        memory = Memory(self.pools["device"], homes, rows, weights, shape.vocab_size)
        check = ReadCheck(device, homes, names, probes, shape.index_topk)
        parts = RankParts(device, compute, collective, partition, memory, names, guards, cost)
        self.forward = RankForward(parts, check, self.copier)
        self._loads: dict[int, LayerEvents] = {}
        self._inbox: asyncio.Queue[Message] = asyncio.Queue()  # bounded by the steps and transfers in flight

    # -- what the messages ask for ----------------------------------------------------------------------

    def step(self, step: Step) -> RankWork:
        """Enqueue a step."""
        staging = Staging(self.device.event(f"staging{step.number}"), list(step.block_pages), list(step.seats))
        loads = self._loads.get(step.load)
        return self.forward.launch(Batch(step.number, step.prefill, step.members, staging, loads), step.touched)

    def load(self, load: Load) -> Loading:
        """Start this rank's part of a load-back."""
        loading = self.copier.load(load.number, load.source, load.target, load.last_step)
        self._loads[load.number] = loading.events
        for old in list(self._loads)[:-LOADS_MAX]:
            del self._loads[old]
        return loading

    def write(self, write: Write) -> Writing:
        """Start this rank's part of a write-back."""
        return self.copier.write(write.number, write.source, write.target)

    # -- as a process of its own --------------------------------------------------------------------------

    def receive(self, message: Message) -> None:
        """Take a message; called in the event loop."""
        if self.alive:
            self._inbox.put_nowait(message)

    async def run(self, answer: Callable[[Ended], None]) -> None:
        """Carry out messages until `Stop`, or until a fault kills this rank."""
        async with asyncio.TaskGroup() as group:
            while self.alive:
                message = await self._inbox.get()
                decision = self._probes.hit("split.rank", self.device.name)
                if isinstance(message, Stop) or (decision is not None and decision.kind == "kill"):
                    self.alive = False
                elif isinstance(message, Step):
                    self.step(message)
                else:
                    part = self.load(message) if isinstance(message, Load) else self.write(message)
                    group.create_task(
                        self._answer_at_end(part.done, message.number, answer), name=f"{self.device.name}.ack"
                    )
                await self.device.settle()

    async def _answer_at_end(self, done: Done, number: int, answer: Callable[[Ended], None]) -> None:
        await done.synchronize("a transfer of this rank has ended")
        if self.alive:
            answer(Ended(number))
