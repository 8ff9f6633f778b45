"""Temporaries are recycled on host release, unless the stream that still uses them was recorded."""

import numpy as np
import pytest
import torch

from repro.serve.device.base import Device, Stream
from tests.litmus.platform import Memory, PlatformFactory, copy, write
from tests.litmus.temporaries import TemporariesExhaustedError, Temporary, TemporaryPool

pytestmark = pytest.mark.simulated("the pool recycles memory of the host; on a GPU torch's own does")


def take(pool: TemporaryPool, stream: Stream, num: int = 4) -> tuple[Temporary, Memory]:
    temporary = pool.take(stream, (num,), np.int64)
    return temporary, torch.from_numpy(temporary.array.view(np.int64))


def same_memory(one: Temporary, other: Temporary) -> bool:
    return np.shares_memory(one.array, other.array)


def seen_by_other_stream(device_factory: PlatformFactory, *, recorded: bool) -> int:
    """Let `other` read a temporary of `compute` that the host has released; return what it saw."""
    platform = device_factory()
    device = platform.device
    compute, other = device.stream("compute"), device.stream("other")
    seen = platform.memory(0, 0, 0, 0)

    async def main() -> None:
        pool = TemporaryPool(device)
        first, values = take(pool, compute)
        compute.enqueue("produce", write(values, 1), duration_us=10)
        produced = device.event("produced")
        produced.record(compute)
        other.wait(produced, "the temporary is written")
        other.enqueue("busy", write(platform.memory(0), 0), duration_us=500)
        other.enqueue("consume", copy(values, seen), duration_us=10)
        if recorded:
            first.record_stream(other)
        first.release()
        second, values = take(pool, compute)
        assert same_memory(first, second) != recorded
        compute.enqueue("next owner", write(values, 2), duration_us=10)

    platform.run(main)
    return int(seen[0])


def test_a_released_temporary_is_overwritten_under_another_streams_reader(device_factory: PlatformFactory) -> None:
    assert seen_by_other_stream(device_factory, recorded=False) == 2


def test_a_temporary_recorded_on_that_stream_is_not(device_factory: PlatformFactory) -> None:
    assert seen_by_other_stream(device_factory, recorded=True) == 1


def test_on_its_own_stream_a_released_temporary_is_safe_at_once(device_factory: PlatformFactory) -> None:
    platform = device_factory()
    compute = platform.device.stream("compute")
    seen = platform.memory(0, 0, 0, 0)

    async def main() -> None:
        pool = TemporaryPool(platform.device)
        first, values = take(pool, compute)
        compute.enqueue("produce", write(values, 1), duration_us=10)
        compute.enqueue("consume", copy(values, seen), duration_us=500)
        first.release()
        second, values = take(pool, compute)
        assert same_memory(first, second)
        compute.enqueue("next owner", write(values, 2), duration_us=10)

    platform.run(main)
    assert seen[0] == 1


def test_a_recorded_temporary_comes_back_when_the_stream_has_reached_the_release(
    device_factory: PlatformFactory,
) -> None:
    platform = device_factory()
    compute, other = platform.device.stream("compute"), platform.device.stream("other")

    async def main() -> None:
        pool = TemporaryPool(platform.device)
        first, values = take(pool, compute)
        other.enqueue("consume", copy(values, platform.memory(0, 0, 0, 0)), duration_us=500)
        first.record_stream(other)
        first.release()
        other.enqueue("behind", write(platform.memory(0), 0), duration_us=5000)
        meanwhile, _ = take(pool, compute)
        assert not same_memory(first, meanwhile)
        await platform.sleep(1000)  # virtual: "consume" has run, "behind" has not
        again, _ = take(pool, compute)
        assert same_memory(first, again)
        assert not [op for op in platform.ops if op.name == "behind"]

    platform.run(main)


def test_memory_is_not_shared_between_the_pools_of_two_streams(device_factory: PlatformFactory) -> None:
    device: Device = device_factory().device
    pool = TemporaryPool(device)
    first, _ = take(pool, device.stream("a"))
    first.release()
    second, _ = take(pool, device.stream("b"))
    assert not same_memory(first, second)


def test_sizes_of_one_block_share_memory_others_do_not(device_factory: PlatformFactory) -> None:
    device = device_factory().device
    stream = device.stream("a")
    pool = TemporaryPool(device)
    first, _ = take(pool, stream, 4)
    first.release()
    other, _ = take(pool, stream, 100)
    near, _ = take(pool, stream, 5)
    assert same_memory(first, near)
    assert not same_memory(first, other)


def test_the_pool_is_bounded(device_factory: PlatformFactory) -> None:
    device = device_factory().device
    stream = device.stream("a")
    pool = TemporaryPool(device, bytes_max=1024)
    held = [take(pool, stream)[0] for _ in range(2)]
    with pytest.raises(TemporariesExhaustedError, match="1024 of 1024 are reserved"):
        take(pool, stream)
    held[0].release()
    take(pool, stream)


def test_a_second_release_and_a_late_record_are_refused(device_factory: PlatformFactory) -> None:
    device = device_factory().device
    stream = device.stream("a")
    temporary, _ = take(TemporaryPool(device), stream)
    temporary.release()
    with pytest.raises(AssertionError, match="released twice"):
        temporary.release()
    with pytest.raises(AssertionError, match="after the release"):
        temporary.record_stream(device.stream("b"))
