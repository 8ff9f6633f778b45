"""What a litmus test needs of a device: a program that runs on it, memory, and operations on memory."""

import asyncio
from collections.abc import Callable, Coroutine
from functools import cache
from typing import Any, Protocol

import torch

from repro.base.clock import run_virtual
from repro.base.probe import Event, NullProbes, Op, unrolled
from repro.schedule.pickers import Pick, timed
from repro.serve.device.base import Body, Commit, Device, Recorder
from repro.serve.device.cuda import CudaDevice
from repro.serve.device.sim import SimDevice

DILATION = 100.0  # a microsecond of a test is so many of the GPU: Python takes some 50 for an enqueue

Memory = torch.Tensor  # int64, of one dimension
Main = Callable[[], Coroutine[Any, Any, None]]


class Platform(Protocol):
    """A device, and how a host program runs beside it to the end."""

    device: Device
    tolerance: float  # of a duration, relative

    @property
    def events(self) -> list[Event]:
        """Return what was emitted, each operation by itself."""

    @property
    def ops(self) -> list[Op]:
        """Return the operations in the order they ended."""

    def run(self, main: Main) -> None: ...

    def memory(self, *values: int) -> Memory:
        """Return device memory with these values. The host may look at it without waiting for any stream."""

    def pinned(self, *values: int) -> Memory:
        """Return memory of the host that the device copies from and to."""

    async def sleep(self, us: float) -> None:
        """Let the host wait for so long in the device's time."""

    def emit(self, event: Event) -> None:
        """Record an event of the test's own."""


class PlatformFactory(Protocol):
    """The fixture `device_factory`: a new device that no other test has touched. On a GPU nobody picks."""

    def __call__(self, pick: Pick = timed) -> Platform: ...


class _Listener(NullProbes):
    def __init__(self) -> None:
        self.recorded: list[Event] = []

    def emit(self, event: Event) -> None:
        self.recorded.append(event)


class SimPlatform:
    """The simulated device under the virtual event loop."""

    tolerance = 0.0

    def __init__(self, pick: Pick = timed, *, bursts: bool = True) -> None:
        self._listener = _Listener()
        self.sim = SimDevice(self._listener, pick, apart=lambda name: not bursts)
        self.device: Device = self.sim

    @property
    def recorded(self) -> list[Event]:
        return self._listener.recorded

    @property
    def events(self) -> list[Event]:
        """Return the events, each operation of a burst by itself."""
        return list(unrolled(self.recorded))

    @property
    def ops(self) -> list[Op]:
        return [event for event in self.events if isinstance(event, Op)]

    def run(self, main: Main) -> None:
        async def whole() -> None:
            await main()
            for stream in self.sim.streams:
                await stream.synchronize("end of the test")

        run_virtual(whole(), self.sim)

    def memory(self, *values: int) -> Memory:
        return torch.tensor(values)

    def pinned(self, *values: int) -> Memory:
        return torch.tensor(values)

    async def sleep(self, us: float) -> None:
        await asyncio.sleep(us / 1e6)

    def emit(self, event: Event) -> None:
        self._listener.emit(event)


class CudaPlatform:
    """A GPU under asyncio's own loop, in slow motion; whoever picks, the hardware decides."""

    tolerance = 0.1  # clock rates change

    def __init__(self, pick: Pick = timed, *, dilation: float = DILATION) -> None:
        load_kernels()
        self._listener = _Listener()
        self._dilation = dilation
        self._memories: list[Memory] = []  # kept: torch gives memory that nobody holds to the next who asks
        self.cuda = CudaDevice(self._listener, dilation=dilation)
        self.device: Device = self.cuda

    @property
    def events(self) -> list[Event]:
        return self._listener.recorded

    @property
    def ops(self) -> list[Op]:
        return [event for event in self.events if isinstance(event, Op)]

    def run(self, main: Main) -> None:
        async def whole() -> None:
            await main()
            for stream in self.cuda.streams:
                await stream.synchronize("end of the test")

        asyncio.run(whole())

    def memory(self, *values: int) -> Memory:
        self._memories.append(torch.tensor(values, device="cuda"))
        return self._memories[-1]

    def pinned(self, *values: int) -> Memory:
        self._memories.append(torch.tensor(values).pin_memory())
        return self._memories[-1]

    async def sleep(self, us: float) -> None:
        await asyncio.sleep(us * self._dilation / 1e6)

    def emit(self, event: Event) -> None:
        self._listener.emit(event)


@cache
def load_kernels() -> None:
    """Run every kernel of the tests once: CUDA loads one at its first launch and may hold up all streams for it."""
    cells = torch.tensor([0, 1], device="cuda")
    torch.empty_like(cells).copy_(cells[cells].clone()).fill_(int(cells[0]))
    cells[:] = torch.tensor([0, 1])
    cells.copy_(torch.tensor([0, 1]).pin_memory(), non_blocking=True)
    torch.cuda.synchronize()


def write(target: Memory, value: int) -> Body:
    """Return an operation that fills `target` when it ends."""

    def body(recorder: Recorder) -> Commit:
        def commit() -> None:
            target.fill_(value)

        return commit

    return body


def copy(source: Memory, target: Memory) -> Body:
    """Return an operation that reads `source` when it starts and writes `target` when it ends."""

    def body(recorder: Recorder) -> Commit:
        seen = torch.empty_like(source if source.is_cuda else target)  # never in the host's memory
        seen.copy_(source, non_blocking=True)

        def commit() -> None:
            target.copy_(seen, non_blocking=True)

        return commit

    return body


def nothing(recorder: Recorder) -> None:
    """An operation that touches no memory."""
