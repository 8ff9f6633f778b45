"""What the CUDA device costs the host, how true its spins are, and how fast pinned memory is copied.

`python -m tests.bench.cuda_device` on a machine with a GPU. Host times are the median of some repeats.
"""

import argparse
import asyncio
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from rich.table import Table

from repro.base.probe import Access, Event, NullProbes, Op
from repro.record.events import encode_line
from repro.serve.device.base import Body, Commit, Recorder
from repro.serve.device.cuda import CudaDevice, clocks_per_us
from tests.bench.results import add_record, show

OPERATIONS = 400  # two kernels each: under the 1,024 launches that CUDA queues before it holds up the host
REPEATS = 15
COPY_BYTES = 256 << 20
PAGE_BYTES = 64 * 1152  # 64 rows of GLM-5's latents in bf16
ACCESS = Access(True, "device", "latent", 0, 1, "r1")


def main() -> None:
    """Print three tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_record(parser)
    given = parser.parse_args()
    gpu = torch.cuda.get_device_name()
    line = f"{gpu}, torch {torch.__version__}, {clocks_per_us():.1f} clocks of a spin kernel a microsecond"
    show(given, line, host_costs(), spins(), copies())


def moving(source: torch.Tensor, target: torch.Tensor, *, told: bool) -> Body:
    """Return an operation of two small copies; if `told` it notes what it touches."""
    held = torch.empty_like(source)

    def body(recorder: Recorder) -> Commit:
        if told:
            recorder.access(ACCESS)
        held.copy_(source, non_blocking=True)

        def commit() -> None:
            target.copy_(held, non_blocking=True)

        return commit

    return body


def host_costs() -> Table:
    """Return microseconds of the host for one operation, bare and through the device."""
    source, target = torch.zeros(64, device="cuda"), torch.zeros(64, device="cuda")
    bare, held = torch.cuda.Stream(), torch.empty_like(source)

    def bare_operation() -> None:
        with torch.cuda.stream(bare):
            held.copy_(source, non_blocking=True)
            target.copy_(held, non_blocking=True)

    table = Table("one operation of two copies of 256 bytes", "host us an enqueue", "host us once ended", title="Host")
    enqueue_us, _ = enqueues(bare_operation, torch.cuda.synchronize)
    table.add_row("torch alone", f"{enqueue_us:.1f}", "")
    for text, probes, told, duration_us in (
        ("enqueued, not recorded", NullProbes(), False, 0.0),
        ("with a spin", NullProbes(), False, 1.0),
        ("with one access, and a line of JSON", Lines(), True, 0.0),
    ):
        stream = CudaDevice(probes).stream("compute")
        body = moving(source, target, told=told)
        enqueue_us, ended_us = enqueues(
            partial(stream.enqueue, "move", body, duration_us=duration_us),
            lambda stream=stream: asyncio.run(stream.synchronize("bench")),
        )
        table.add_row(text, f"{enqueue_us:.1f}", f"{ended_us:.1f}")
    return table


class Lines(NullProbes):
    """Makes a line of JSON of every event, as the event log does."""

    def emit(self, event: Event) -> None:
        encode_line(event)


class Times(NullProbes):
    """Keeps how long operations took."""

    def __init__(self) -> None:
        self.took_us: list[float] = []

    def emit(self, event: Event) -> None:
        if isinstance(event, Op):
            self.took_us.append(event.end_us - event.start_us)


def enqueues(operation: Callable[[], None], collect: Callable[[], None]) -> tuple[float, float]:
    """Return microseconds an operation of the enqueue, and of what follows once the GPU has finished."""
    enqueue_us, ended_us = [], []
    for _ in range(REPEATS):
        began_s = time.perf_counter()
        for _ in range(OPERATIONS):
            operation()
        enqueue_us.append((time.perf_counter() - began_s) * 1e6 / OPERATIONS)
        torch.cuda.synchronize()
        began_s = time.perf_counter()
        collect()
        ended_us.append((time.perf_counter() - began_s) * 1e6 / OPERATIONS)
    return median(enqueue_us), median(ended_us)


def spins() -> Table:
    """Return how long operations that only spin took on the GPU."""

    table = Table("asked us", "took us, median", "least", "most", title="Spins")
    for us in (0.0, 1.0, 10.0, 100.0, 1000.0, 10_000.0):
        times = Times()
        stream = CudaDevice(times).stream("spin")
        for _ in range(50):
            stream.enqueue("spin", lambda recorder: None, duration_us=us)
        asyncio.run(stream.synchronize("bench"))
        table.add_row(f"{us:g}", *(f"{each(times.took_us):.1f}" for each in (median, min, max)))
    return table


def copies() -> Table:
    """Return copy rates of pinned memory, alone and two at once."""
    one, two = torch.cuda.Stream(), torch.cuda.Stream()
    host = [torch.zeros(COPY_BYTES, dtype=torch.uint8).pin_memory() for _ in range(2)]
    device = [torch.zeros(COPY_BYTES, dtype=torch.uint8, device="cuda") for _ in range(2)]
    page_host, page = host[0][:PAGE_BYTES], device[0][:PAGE_BYTES]
    table = Table("copy", "bytes", "us", "GB/s", title="Pinned memory")
    for text, pairs in {
        "host to device": [(device[0], host[0])],
        "device to host": [(host[0], device[0])],
        "host to device, two streams": [(device[0], host[0]), (device[1], host[1])],
        "both directions at once": [(device[0], host[0]), (host[1], device[1])],
        "host to device, one page": [(page, page_host)],
        "device to host, one page": [(page_host, page)],
    }.items():
        us = copied_us(list(zip((one, two), pairs, strict=False)))
        num_bytes = sum(target.numel() for target, _ in pairs)
        table.add_row(text, f"{num_bytes:,}", f"{us:,.1f}", f"{num_bytes / us / 1e3:.1f}")
    return table


def copied_us(copies: list[tuple[torch.cuda.Stream, tuple[torch.Tensor, torch.Tensor]]]) -> float:
    """Return the median time from the first copy's start to the last one's end."""
    times = []
    for _ in range(REPEATS):
        start = torch.cuda.Event(enable_timing=True)
        ends = []
        first = copies[0][0]
        with torch.cuda.stream(first):
            torch.cuda._sleep(200_000)  # the host is ahead when the copies start
            start.record()
        for stream, (target, source) in copies:
            with torch.cuda.stream(stream):
                stream.wait_event(start)
                target.copy_(source, non_blocking=True)
                ends.append(torch.cuda.Event(enable_timing=True))
                ends[-1].record()
        torch.cuda.synchronize()
        times.append(max(start.elapsed_time(end) for end in ends) * 1000)
    return median(times)


if __name__ == "__main__":
    main()
