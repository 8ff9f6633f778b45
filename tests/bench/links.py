"""What a collective and a host copy take between two real GPUs: `python -m tests.bench.links`, on a machine with two.

The figures stand behind the prices of `repro.serve.device.cost`. Medians of device events, data of random bits; the
slower of the two ranks counts. Beside a matrix product: how much longer each takes while the other runs.
"""

import os
from collections.abc import Callable

import numpy as np
import torch
import torch.distributed as dist
from torch.multiprocessing import spawn

TOKENS = (64, 1_000, 10_000, 100_000)
REPEATS = 60
WARM_UPS = 10
IN_A_ROW = 50  # so that the first one's launch does not count
PRODUCT = 8192  # rows and columns of the matrix product
PORT = "29517"
ROW_BYTES = 1152  # a token's latent of one layer: `ModelPrice.latent_row_bytes`; the machine may lack what it needs


def main() -> None:
    """Print one line a measurement."""
    if torch.cuda.device_count() < 2:
        raise SystemExit("two GPUs are needed")
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": PORT, "NCCL_NVLS_ENABLE": "0"}
    spawn(measure, nprocs=2)


def measure(rank: int) -> None:
    """Measure as one of two ranks; the first prints."""
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", rank=rank, world_size=2, device_id=torch.device("cuda", rank))
    sizes = [tokens * ROW_BYTES for tokens in TOKENS]
    if not rank:
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; {REPEATS} repeats, median (10 % to 90 %)")
    for name, make in (("broadcast", broadcast), ("all-gather", all_gather)):
        times = [timed(make(size)) for size in sizes]
        report(rank, name, sizes, times)
    small = broadcast(sizes[0])
    in_a_row = np.median(timed(lambda: void([small() for _ in range(IN_A_ROW)]))) / IN_A_ROW
    if not rank:
        print(f"broadcast, {TOKENS[0]} tokens, {IN_A_ROW} in a row: {in_a_row:.1f} us each")
    report(rank, "pinned host to device", sizes, [timed(copy(size)) for size in sizes])
    beside(rank, sizes[-1])
    dist.destroy_process_group()


def broadcast(size: int) -> Callable[[], None]:
    data = torch.randint(256, (size,), dtype=torch.uint8, device="cuda")
    return lambda: void(dist.broadcast(data, 0))


def all_gather(size: int) -> Callable[[], None]:
    """Each rank gives half of `size`."""
    part = torch.randint(256, (size // 2,), dtype=torch.uint8, device="cuda")
    whole = torch.empty(2 * len(part), dtype=torch.uint8, device="cuda")
    return lambda: void(dist.all_gather_into_tensor(whole, part))


def copy(size: int) -> Callable[[], None]:
    host = torch.randint(256, (size,), dtype=torch.uint8).pin_memory()
    device = torch.empty(size, dtype=torch.uint8, device="cuda")
    return lambda: void(device.copy_(host, non_blocking=True))


def void(_: object) -> None:
    """Drop a result."""


def timed(work: Callable[[], None]) -> np.ndarray:
    """Return microseconds of each repeat, of the slower rank, (REPEATS,)."""
    spans = []
    for _ in range(WARM_UPS + REPEATS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        dist.barrier()
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        spans.append(1e3 * start.elapsed_time(end))
    slower = torch.tensor(spans[WARM_UPS:], dtype=torch.float64, device="cuda")
    dist.all_reduce(slower, op=dist.ReduceOp.MAX)
    return slower.cpu().numpy()


def report(rank: int, name: str, sizes: list[int], times: list[np.ndarray]) -> None:
    """Print what each size takes, and the fixed part and the rate that fit the medians."""
    if rank:
        return
    for tokens, size, each in zip(TOKENS, sizes, times, strict=True):
        low, middle, high = np.quantile(each, (0.1, 0.5, 0.9))
        print(f"{name}, {tokens:,} tokens, {size / 1e6:.3f} MB: {middle:.1f} us ({low:.1f} to {high:.1f})")
    medians = np.array([np.median(each) for each in times])
    rate = (sizes[-1] - sizes[-2]) / (medians[-1] - medians[-2])
    print(f"{name}: {medians[0]:.0f} us for the smallest; {rate / 1e3:.0f} GB/s from {TOKENS[-2]:,} tokens on")


def beside(rank: int, size: int) -> None:
    """Print what a broadcast and matrix products take alone, and at the same time on two streams."""
    one, two = (torch.randn(PRODUCT, PRODUCT, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(one)
    send = broadcast(size)
    side = torch.cuda.Stream()

    def product() -> None:
        torch.matmul(one, two, out=out)

    alone, sent = np.median(timed(product)), np.median(timed(send))
    together = {"product": [], "broadcast": []}  # type: dict[str, list[float]]
    products = max(1, round(2 * float(sent) / float(alone)))
    for _ in range(WARM_UPS + REPEATS):
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(4)]
        torch.cuda.synchronize()
        dist.barrier()
        marks[0].record()
        with torch.cuda.stream(side):
            marks[2].record()
            send()
            marks[3].record()
        for _ in range(products):
            product()
        marks[1].record()
        torch.cuda.synchronize()
        together["product"].append(1e3 * marks[0].elapsed_time(marks[1]) / products)
        together["broadcast"].append(1e3 * marks[2].elapsed_time(marks[3]))
    if not rank:
        side_by_side = {name: float(np.median(each[WARM_UPS:])) for name, each in together.items()}
        print(
            f"{products} products of {PRODUCT} beside a broadcast of {size / 1e6:.0f} MB: a product "
            f"{alone:.0f} us alone, {side_by_side['product']:.0f} on average beside it; the broadcast "
            f"{sent:.0f} us alone, {side_by_side['broadcast']:.0f} beside them"
        )


if __name__ == "__main__":
    main()
