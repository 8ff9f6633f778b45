"""Temporary buffers that are recycled when the host lets go of them, not when the device has.

    take(stream A) ── enqueue on A, enqueue on B ── release ── take(stream A) again: the same memory

On stream A that is safe, because the next use is enqueued behind the last. Stream B may still read
while A's next operation writes, unless the buffer was recorded on B: then it stays aside until B has
reached the release. These are the rules of PyTorch's caching allocator.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from repro.serve.device.base import Device, Event, Stream

BLOCK_BYTES = 512  # sizes are rounded up to whole blocks, so that nearly equal buffers share memory
POOL_BYTES_MAX = 1 << 30

Memory = NDArray[np.uint8]


class TemporariesExhaustedError(MemoryError):
    """All of the pool is held by temporaries that are not released, or still used by other streams."""


@dataclass(eq=False)
class Temporary:
    """Memory for the operations of one stream, from `take` to `release`."""

    array: NDArray[np.generic]  # what the last owner left in it; bodies take it by reference
    stream: Stream
    pool: "TemporaryPool"
    memory: Memory
    users: list[Stream] = field(default_factory=list)
    released: bool = False

    def record_stream(self, stream: Stream) -> None:
        """Say that `stream` uses this buffer too: it is recycled only after what `stream` has by then."""
        assert not self.released, f"record on {stream.name} after the release"
        if stream is not self.stream and stream not in self.users:
            self.users.append(stream)

    def release(self) -> None:
        """Give the memory back. Operations enqueued so far may still use it, later ones may not."""
        assert not self.released, f"a temporary of stream {self.stream.name} is released twice"
        self.released = True
        self.pool.recycle(self)


class TemporaryPool:
    """The temporaries of one device. Each stream reuses its own memory, the last released first."""

    def __init__(self, device: Device, bytes_max: int = POOL_BYTES_MAX) -> None:
        self._device = device
        self._bytes_max = bytes_max
        self._free: dict[tuple[str, int], list[Memory]] = {}  # by stream and bytes
        self._aside: list[tuple[Temporary, list[Event]]] = []  # until other streams have reached the release
        self.bytes_reserved = 0

    def take(self, stream: Stream, shape: tuple[int, ...], dtype: type[np.generic]) -> Temporary:
        """Return a buffer for operations on `stream`; its content is undefined.

        Raises TemporariesExhaustedError when the pool's bound is reached.
        """
        need = int(np.prod(shape)) * np.dtype(dtype).itemsize
        size = max(1, -(-need // BLOCK_BYTES)) * BLOCK_BYTES
        self._take_back()
        free = self._free.setdefault((stream.name, size), [])
        memory = free.pop() if free else self._reserve(stream, size)
        return Temporary(memory[:need].view(dtype).reshape(shape), stream, self, memory)

    def recycle(self, temporary: Temporary) -> None:
        """Take a released temporary's memory back, at once or when its other streams have let go."""
        events = []
        for stream in temporary.users:
            event = self._device.event(f"temporary on {stream.name}")
            event.record(stream)
            events.append(event)
        if events:
            self._aside.append((temporary, events))
        else:
            self._put_back(temporary)

    def _take_back(self) -> None:
        still = []
        for temporary, events in self._aside:
            if all(event.query() for event in events):
                self._put_back(temporary)
            else:
                still.append((temporary, events))
        self._aside = still

    def _put_back(self, temporary: Temporary) -> None:
        self._free[temporary.stream.name, len(temporary.memory)].append(temporary.memory)

    def _reserve(self, stream: Stream, size: int) -> Memory:
        if self.bytes_reserved + size > self._bytes_max:
            raise TemporariesExhaustedError(
                f"stream {stream.name} asks for {size} bytes, {self.bytes_reserved} of {self._bytes_max} are "
                "reserved and none of that size is free; release temporaries or raise the pool's bytes_max"
            )
        self.bytes_reserved += size
        return np.zeros(size, np.uint8)
