"""`torch.cuda` as SGLang's cache controller uses it, on streams of our device layer.

The controller's module holds it as `device_module`. Nothing here waits for the device: what SGLang would block
for has been asked for with `query` before, on the paths that are played.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from repro.serve.device import base

NAMES = ("write", "load")  # SGLang's controller makes its streams in this order


class VirtualEvent:
    """An event that SGLang makes; `record` and `wait` without a stream mean the current one, as in torch."""

    def __init__(self, module: "DeviceModule", event: base.Event) -> None:
        self._module = module
        self.event = event

    def record(self, stream: "VirtualStream | None" = None) -> None:
        """Move this event behind everything enqueued on the stream so far."""
        self.event.record((stream or self._module.current_stream()).stream)

    def wait(self, stream: "VirtualStream | None" = None) -> None:
        """Hold what is enqueued on the stream from now on until the latest record is reached."""
        (stream or self._module.current_stream()).stream.wait(self.event, _caller())

    def query(self) -> bool:
        """Return whether the latest record has been reached; true when never recorded."""
        return self.event.query()

    def synchronize(self) -> None:
        """Let the host know that the latest record has been reached."""
        assert self.event.query(), f"{_caller()} blocks the host, which nothing that is played here does"


class VirtualStream:
    """A stream that SGLang makes."""

    def __init__(self, stream: base.Stream) -> None:
        self.stream = stream

    def wait_event(self, event: VirtualEvent) -> None:
        """Hold what is enqueued from now on until the latest record of `event` is reached."""
        self.stream.wait(event.event, _caller())


class DeviceModule:
    """Stands where SGLang has `torch.get_device_module()`."""

    def __init__(self, device: base.Device) -> None:
        self._device = device
        self._names = iter(NAMES)
        self._current = VirtualStream(device.stream("compute"))

    def Stream(self) -> VirtualStream:  # noqa: N802  torch's name
        """Return a new stream."""
        return VirtualStream(self._device.stream(next(self._names)))

    def Event(self) -> VirtualEvent:  # noqa: N802  torch's name
        """Return an event that was never recorded."""
        return VirtualEvent(self, self._device.event("sglang"))

    def current_stream(self) -> VirtualStream:
        """Return the stream that operations go to now: compute, outside of every `stream`."""
        return self._current

    @contextmanager
    def stream(self, stream: VirtualStream) -> Iterator[None]:
        """Let operations go to `stream` inside."""
        outside, self._current = self._current, stream
        try:
            yield
        finally:
            self._current = outside


def _caller() -> str:
    """Return which function of SGLang waits: the reason that reports quote."""
    return f"SGLang's {sys._getframe(2).f_code.co_qualname}"
