"""What a litmus test needs of a device: a program that runs on it, memory, and operations on memory."""

from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from repro.base.clock import run_virtual
from repro.base.probe import Event, NullProbes, Op, unrolled
from repro.schedule.pickers import Pick, timed
from repro.serve.device.base import Body, Commit, Device, Recorder
from repro.serve.device.sim import SimDevice

Memory = NDArray[np.int64]
Main = Callable[[], Coroutine[Any, Any, None]]


class Platform(Protocol):
    """A device, and how a host program runs beside it to the end."""

    device: Device

    @property
    def ops(self) -> list[Op]:
        """Return the operations in the order they ended."""

    def run(self, main: Main) -> None: ...


class PlatformFactory(Protocol):
    """The fixture `device_factory`: a new device that no other test has touched."""

    def __call__(self, pick: Pick = timed) -> Platform: ...


class _Listener(NullProbes):
    def __init__(self) -> None:
        self.recorded: list[Event] = []

    def emit(self, event: Event) -> None:
        self.recorded.append(event)


class SimPlatform:
    """The simulated device under the virtual event loop."""

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


def memory(*values: int) -> Memory:
    """Return device memory with these values."""
    return np.array(values, np.int64)


def write(target: Memory, value: int) -> Body:
    """Return an operation that fills `target` when it ends."""

    def body(recorder: Recorder) -> Commit:
        return lambda: target.fill(value)

    return body


def copy(source: Memory, target: Memory) -> Body:
    """Return an operation that reads `source` when it starts and writes `target` when it ends."""

    def body(recorder: Recorder) -> Commit:
        seen = source.copy()

        def commit() -> None:
            target[:] = seen

        return commit

    return body


def nothing(recorder: Recorder) -> None:
    """An operation that touches no memory."""
