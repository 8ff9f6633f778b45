"""How a step's operations come onto a stream, and what that costs the host."""

from repro.base.probe import Access
from repro.serve.device.base import Body, Device, Stream
from repro.serve.device.cost import CostModel
from repro.serve.sched.batch import Batch


class Launches:
    """Enqueues operations of steps, on the compute stream unless another is given."""

    def __init__(self, device: Device, compute: Stream, cost: CostModel) -> None:
        self._device = device
        self._compute = compute
        self._cost = cost

    def _put(
        self,
        name: str,
        body: Body,
        batch: Batch,
        duration_us: float,
        layer: int = -1,
        declared: tuple[Access, ...] = (),
        stream: Stream | None = None,
    ) -> None:
        eager = batch.prefill and not batch.replays
        self._device.charge(self._cost.launch_prefill_us if eager else self._cost.launch_decode_us)
        (stream or self._compute).enqueue(
            name,
            body,
            duration_us=duration_us,
            layer=layer,
            step=batch.number,
            requests=batch.requests,
            declared=declared,
        )
