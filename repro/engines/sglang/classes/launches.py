"""How the operations of a step come onto SGLang's current stream, and what that costs the host."""

from typing import Protocol

from repro.base.probe import Access, Component
from repro.engines.sglang.classes.rows import Bytes
from repro.engines.sglang.classes.streams import DeviceModule
from repro.serve.device.base import Body, Device, Recorder
from repro.serve.device.cost import CostModel


class Launching(Protocol):
    """The step that is being launched: what it reads, it checks."""

    @property
    def number(self) -> int:
        """Return its number."""

    @property
    def requests(self) -> tuple[str, ...]:
        """Return the ids of its requests."""

    @property
    def token_keys(self) -> int:
        """Return how many pairs of a new token and a key are scored in a layer."""

    def accesses(self, write: bool, component: Component, layer: int) -> tuple[Access, ...]:
        """Return what it touches in a layer: the pages of its contexts to read, of its new rows to write."""

    def check(self, recorder: Recorder, component: Component, layer: int, rows: Bytes) -> None:
        """Compare (tokens, width) rows, the members' contexts one after another, with what they ought to be."""


class Launches:
    """Enqueues operations of steps."""

    def __init__(self, device: Device, module: DeviceModule, cost: CostModel) -> None:
        self._device = device
        self._module = module
        self._cost = cost

    def _put(
        self,
        step: Launching,
        name: str,
        body: Body,
        duration_us: float,
        layer: int = -1,
        touched: tuple[Access, ...] = (),
    ) -> None:
        self._device.charge(self._cost.launch_prefill_us)
        self._module.current_stream().stream.enqueue(
            name,
            body,
            duration_us=duration_us,
            layer=layer,
            step=step.number,
            requests=step.requests,
            declared=touched,
        )


def note(recorder: Recorder, touched: tuple[Access, ...]) -> None:
    """Record what an operation touches."""
    for access in touched:
        recorder.access(access)
