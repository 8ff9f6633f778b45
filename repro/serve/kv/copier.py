"""The copies between the tiers of one host: load-back layer by layer, write-back of all layers.

    device pages ──write stream──> host pages
         ^                             │
         └───────── load stream ───────┘   an event behind each layer

`kv.tiers` decides which pages are copied and who owns them. Only the guards stand between a copy and a reader.
"""

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from repro.base.probe import Access, Component
from repro.serve.config import EngineConfig
from repro.serve.device.base import Commit, Device, Event, Recorder, Stream
from repro.serve.device.cost import CostModel
from repro.serve.guards import Guards
from repro.serve.kv.loadback import LayerDoneCounter, LayerEvents
from repro.serve.kv.pool import COMPONENTS, KVPool, Names, Pages, Place

COPY_GROUPS_MAX = 16  # groups of a transfer: longer ones have larger groups, or 78 layers would overfill a stream
STEPS_REMEMBERED = 8  # steps with events that are still asked for; older steps have ended


@dataclass(frozen=True)
class Direction:
    """A way between the tiers; `name` is the name of its copies."""

    name: str
    source: Place
    target: Place


LOAD_BACK = Direction("loadback.copy_layer", "host", "device")
WRITE_BACK = Direction("writeback.copy_layer", "device", "host")


@dataclass(frozen=True)
class PageCopy:
    """An operation's body: reads the source pages when the copy starts, writes the target pages when it ends."""

    from_pool: KVPool
    to_pool: KVPool
    source: Pages
    target: Pages
    touched: tuple[Access, Access]  # the read, the write

    def __call__(self, recorder: Recorder) -> Commit:
        component, layer = self.touched[0].component, self.touched[0].layer
        rows = self.from_pool.read(component, layer, self.source)
        for access in self.touched:
            recorder.access(access)
        return lambda: self.to_pool.write(component, layer, self.target, rows)


class Done(Protocol):
    """The end of a transfer, wherever its parts run; a device event is one."""

    def query(self) -> bool:
        """Return whether it has ended."""

    def synchronize(self, why: str) -> Awaitable[None]:
        """Wait on the host until it has ended."""


class Loading(NamedTuple):
    """A load-back under way."""

    events: LayerEvents
    done: Done


class Writing(NamedTuple):
    """A write-back under way, and how many copies it takes."""

    done: Done
    copies: int


class Copier(Protocol):
    """Carries out transfers, which their caller numbers."""

    @property
    def ready(self) -> bool:
        """Return whether another load-back may be started."""

    def load(self, number: int, source: Pages, target: Pages, last_step: int) -> Loading:
        """Start to load host pages into device pages, which `last_step` was the last to use (-1: none)."""

    def write(self, number: int, source: Pages, target: Pages) -> Writing:
        """Start to write device pages, as the steps enqueued so far leave them, into host pages."""

    def step_enqueued(self, step: int, done: Event) -> None:
        """Note the event behind a step, so that page reuse can wait for exactly that step."""

    def step_done(self, step: int) -> Event | None:
        """Return the event behind an enqueued step; None when it is long done."""


class TierCopier:
    """The copies of one host (`Copier`): all layers that its device pool holds."""

    def __init__(
        self,
        config: EngineConfig,
        device: Device,
        compute: Stream,
        pools: dict[Place, KVPool],
        names: Names,
        guards: Guards,
        cost: CostModel,
        layers: int,
    ) -> None:
        self._config = config
        self._device = device
        self._compute = compute
        self._pools = pools
        self._page_sets = names.page_sets
        self._guards = guards
        self._cost = cost
        self._layers = range(layers)  # all of the model's, not only those that the pools hold
        self._load = device.stream("load")
        self._write = device.stream("write")
        self._loaded = LayerDoneCounter(device, layers)
        self._steps: dict[int, Event] = {}

    @property
    def ready(self) -> bool:
        """Return whether a slot of the ring is free."""
        return self._loaded.ready

    def load(self, number: int, source: Pages, target: Pages, last_step: int) -> Loading:
        """Start to load host pages into device pages."""
        events, done = self._loaded.produce(number), self._device.event("load.done")
        self._guards.waits.on_load_start(lambda: self._load_layers(number, source, target, last_step, events, done))
        return Loading(events, done)

    def _load_layers(
        self, number: int, source: Pages, target: Pages, last_step: int, events: LayerEvents, done: Event
    ) -> None:
        """Put the copies of a load-back on its stream, and record its events behind them."""
        last_use = self.step_done(last_step)
        if last_use is not None:
            self._guards.waits.before_page_reuse(self._load, last_use)
        model = len(self._layers) - (self._config.speculative_drafts > 0)
        copied = self._guards.decisions.loaded_layers(self._layers[:model], self._layers[model:])
        held = self._pools["device"].layer_numbers
        for layer in self._layers:
            if layer in copied and layer in held:
                self._copy_layer(self._load, LOAD_BACK, number, layer, source, target)
            events.layer_done(layer).record(self._load)
        done.record(self._load)  # the ring's events may be taken again before the ack

    def write(self, number: int, source: Pages, target: Pages) -> Writing:
        """Start to write device pages into host pages."""
        stored = self._device.event("write.start")
        stored.record(self._compute)
        self._guards.waits.before_write_back(self._write, stored)
        copies = 0
        for layer in self._pools["device"].layer_numbers:
            copies += self._copy_layer(self._write, WRITE_BACK, number, layer, source, target)
        done = self._device.event("write.done")
        done.record(self._write)
        return Writing(done, copies)

    def step_enqueued(self, step: int, done: Event) -> None:
        """Note the event behind a step."""
        self._steps[step] = done
        for old in [number for number in self._steps if number < step - STEPS_REMEMBERED]:
            del self._steps[old]

    def step_done(self, step: int) -> Event | None:
        """Return the event behind an enqueued step; None when it is long done."""
        return self._steps.get(step)

    def _copy_layer(self, stream: Stream, way: Direction, number: int, layer: int, source: Pages, target: Pages) -> int:
        """Enqueue the copies of one layer: latents, then index keys, by groups of pages. Return how many."""
        size = self._config.page_tokens
        group_pages = max(self._config.copy_group_pages, -(-len(source) // COPY_GROUPS_MAX))
        groups = [slice(start, start + group_pages) for start in range(0, len(source), group_pages)]
        components = self._guards.decisions.loaded_components(COMPONENTS) if way is LOAD_BACK else COMPONENTS
        for component in components:
            row_bytes = self._cost.row_bytes(component)
            for group in groups:
                body = self._copy_body(way, component, layer, source[group], target[group])
                duration_us = self._cost.copy_us(len(body.source) * size, row_bytes)
                stream.enqueue(way.name, body, duration_us=duration_us, layer=layer, step=number, declared=body.touched)
        return len(components) * len(groups)

    def _copy_body(self, way: Direction, component: Component, layer: int, source: Pages, target: Pages) -> PageCopy:
        sets = self._page_sets
        touched = (
            Access(False, self._pools[way.source].tier, component, layer, sets.intern(source), ""),
            Access(True, self._pools[way.target].tier, component, layer, sets.intern(target), ""),
        )
        return PageCopy(self._pools[way.source], self._pools[way.target], source, target, touched)
