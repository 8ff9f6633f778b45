"""One-sided writes from a prefill worker into a decode worker's memory.

    P0.transfer0   [ chunk 0: layer 0 latent, index, layer 1 ... ] [ chunk 2 ... ]
    P0.transfer1   [ chunk 1 ... ]
    P0.metadata                                                      [ slot ]

A write keeps the addresses that it was posted with, can't be cancelled, and lands in whatever the pages
are by then. Its completion is known on this side only; the other side learns of it by message.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from repro.base.probe import Access, BadRead, Component, Probes
from repro.serve.device.base import Commit, Device, Event, Recorder, Stream
from repro.serve.device.cost import CostModel
from repro.serve.guards import Guards
from repro.serve.kv.copier import PageCopy
from repro.serve.kv.pool import COMPONENTS, KVPool, Names, Pages
from repro.serve.pd.messages import Destination
from repro.serve.sched.sampling import Sampled

COPY_GROUPS_MAX = 16  # groups of one chunk and layer; longer chunks have larger groups


class Slots:
    """A decode worker's metadata slots: pinned host memory that prefill workers write into."""

    def __init__(self, name: str, slots: int) -> None:
        self.name = name
        self.rooms: NDArray[np.int64] = np.full(slots, -1, np.int64)
        self.first: list[Sampled | None] = [None] * slots

    def put(self, slot: int, room: int, first: Sampled) -> None:
        """Overwrite a slot."""
        self.rooms[slot] = room
        self.first[slot] = first


@dataclass(frozen=True)
class RemoteMemory:
    """What a decode worker has registered for others to write into."""

    pool: KVPool
    slots: Slots


@dataclass(eq=False)
class Flight:
    """Writes that were posted together; `done` is behind the last of them."""

    done: Event
    failed: set[Component] = field(default_factory=set)  # known once `done` is reached


class Lanes:
    """The queue pairs of one prefill worker, on one network port."""

    def __init__(
        self,
        device: Device,
        pool: KVPool,
        names: Names,
        cost: CostModel,
        guards: Guards,
        probes: Probes,
        *,
        lanes: int,
        group_pages: int,
    ) -> None:
        self._device = device
        self._pool = pool
        self._names = names
        self._cost = cost
        self._guards = guards
        self._probes = probes
        self._group_pages = group_pages
        port = device.named("nic")
        self._lanes = [device.stream(f"transfer{number}", engine=port) for number in range(lanes)]
        self._metadata = device.stream("metadata", engine=port)

    def write_chunk(
        self,
        number: int,
        source: Pages,
        first_page: int,
        to: RemoteMemory,
        destination: Destination,
        request: str,
        stored: Event,
        *,
        last: bool,
    ) -> Flight:
        """Post the writes of a prompt's chunk: `source`, whose first page is the prompt's `first_page`."""
        lane = self._lanes[number % len(self._lanes)]
        self._guards.waits.before_transfer_read(lane, stored, last)
        target = destination.pages[first_page : first_page + len(source)]
        group = max(self._group_pages, -(-len(source) // COPY_GROUPS_MAX))
        groups = [slice(start, start + group) for start in range(0, len(source), group)]
        flight = Flight(self._device.event(f"room{destination.room}.chunk{number}"))
        for layer in range(self._pool.layers):
            for component in COMPONENTS:
                for part in groups:
                    copy = self._copy(to.pool, component, layer, source[part], target[part], request, destination)
                    self._post(lane, copy, flight, destination.room, request)
        flight.done.record(lane)
        return flight

    def write_slot(self, to: RemoteMemory, destination: Destination, request: str, first: Sampled) -> Flight:
        """Post the write of the first token into the request's metadata slot."""
        lane, slots, slot = self._metadata, to.slots, destination.slot
        pages = self._names.page_sets.intern(np.array([slot], np.int32))
        touched = Access(True, slots.name, "slot", 0, pages, request, destination.granted)

        def body(recorder: Recorder) -> Commit:
            recorder.access(touched)
            return lambda: slots.put(slot, destination.room, first)

        flight = Flight(self._device.event(f"room{destination.room}.slot"))
        lane.enqueue(
            "transfer.write_slot",
            body,
            duration_us=self._cost.write_fixed_us,
            layer=0,
            step=destination.room,
            requests=(request,),
            declared=(touched,),
        )
        flight.done.record(lane)
        return flight

    def _copy(
        self,
        pool: KVPool,
        component: Component,
        layer: int,
        source: Pages,
        target: Pages,
        request: str,
        destination: Destination,
    ) -> PageCopy:
        intern = self._names.page_sets.intern
        touched = (
            Access(False, self._pool.tier, component, layer, intern(source), request),
            Access(True, pool.tier, component, layer, intern(target), request, destination.granted),
        )
        return PageCopy(self._pool, pool, source, target, touched)

    def _post(self, lane: Stream, copy: PageCopy, flight: Flight, room: int, request: str) -> None:
        component, layer = copy.touched[0].component, copy.touched[0].layer
        tokens = len(copy.source) * self._pool.page_tokens
        decision = self._probes.hit(f"transfer.{component}", lane.name, layer)

        def failing(recorder: Recorder) -> Commit:
            """Read the source and deliver nothing; the completion says so."""
            copy(recorder)
            return lambda: flight.failed.add(component)

        lane.enqueue(
            "transfer.write",
            copy if decision is None else failing,
            duration_us=self._cost.write_us(tokens, self._cost.row_bytes(component)),
            layer=layer,
            step=room,
            requests=(request,),
            declared=copy.touched,
        )


class SlotReader:
    """Reads a decode worker's own slots, on a stream so that the read is ordered like any other."""

    def __init__(self, device: Device, slots: Slots, names: Names, probes: Probes) -> None:
        self._device = device
        self._slots = slots
        self._names = names
        self._probes = probes
        self._stream = device.stream("slots")

    async def read(self, slot: int, room: int, request: str, position: int) -> Sampled:
        """Return the first token in a slot; emits a bad read when another room has written it."""
        found: list[Sampled] = []
        pages = self._names.page_sets.intern(np.array([slot], np.int32))
        touched = Access(False, self._slots.name, "slot", 0, pages, request)

        def body(recorder: Recorder) -> None:
            recorder.access(touched)
            first = self._slots.first[slot]
            assert first is not None, f"slot {slot} of room {room} was never written"
            found.append(first)
            if self._slots.rooms[slot] != room:
                stream, index = recorder.ref
                bad = self._names.bad_read()
                now_us = self._device.now_us
                self._probes.emit(BadRead(bad, stream, index, "slot", 0, request, 1, position, pages, 0, now_us))

        self._stream.enqueue(
            "transfer.read_slot", body, duration_us=1.0, layer=0, step=room, requests=(request,), declared=(touched,)
        )
        await self._stream.synchronize("the first token is read")
        (first,) = found
        return first
