"""Layer-wise load-back: which events a batch waits for, layer by layer.

A ring of three, as HiCache has it: the scheduler of step N+1 may start a load while the batches of
steps N and N-1 still wait on theirs. A slot is taken again only after its last layer is done.
"""

from repro.serve.device.base import Device, Event

RING_SLOTS = 3


class LayerEvents:
    """One load-back operation: an event behind the copies of each layer (`guards.waits.LayerLoads`)."""

    def __init__(self, device: Device, slot: int, layers: int) -> None:
        self.transfer = 0  # the load-back that took this slot last
        self._events = [device.event(f"load{slot}.layer{layer}") for layer in range(layers)]

    def layer_done(self, layer: int) -> Event:
        """Return the event behind the last copy of `layer`."""
        return self._events[layer]

    @property
    def all_done(self) -> Event:
        """Return the event behind the last copy of all."""
        return self._events[-1]


class LayerDoneCounter:
    """The ring of load-backs in flight."""

    def __init__(self, device: Device, layers: int) -> None:
        self._ring = [LayerEvents(device, slot, layers) for slot in range(RING_SLOTS)]
        self._next = 0

    @property
    def ready(self) -> bool:
        """Return whether the next slot's previous load has finished."""
        return self._ring[self._next].all_done.query()

    def produce(self, transfer: int) -> LayerEvents:
        """Take the next slot for a new load-back; the caller records each layer's event."""
        assert self.ready, "a fourth load-back before the first has finished"
        events = self._ring[self._next]
        events.transfer = transfer
        self._next = (self._next + 1) % RING_SLOTS
        return events
