"""Closures are not kernels: pointers are fixed at the enqueue, bytes are read when the operation runs."""

import pytest
import torch

from repro.schedule.pickers import RandomPicker
from repro.serve.device.base import Body, Commit, Recorder
from tests.litmus.platform import Memory, PlatformFactory, copy, write

PAGES = 3


def gather(block_table: Memory, pages: Memory, out: Memory) -> Body:
    """Return an operation that reads the block table, and the pages it names, when it runs."""

    def body(recorder: Recorder) -> Commit:
        seen = pages[block_table].clone()

        def commit() -> None:
            out[:] = seen

        return commit

    return body


def test_a_block_table_is_read_when_the_operation_runs(device_factory: PlatformFactory) -> None:
    platform = device_factory()
    stream, busy = platform.device.stream("compute"), platform.device.stream("busy")
    table, pages, out = platform.memory(0, 1), platform.memory(10, 11, 12, 13), platform.memory(0, 0)

    async def main() -> None:
        busy.enqueue("hold", write(platform.memory(0), 0), duration_us=100)
        held = platform.device.event("held")
        held.record(busy)
        stream.wait(held, "the host is quicker")
        stream.enqueue("gather", gather(table, pages, out), duration_us=1)
        table[:] = torch.tensor((2, 3))  # the host rewrites memory that the device has yet to read

    platform.run(main)
    assert out.tolist() == [12, 13]


def test_a_pinned_buffer_rewritten_before_its_copy_ran_is_copied_rewritten(device_factory: PlatformFactory) -> None:
    platform = device_factory()
    stream = platform.device.stream("compute")
    pinned, rows = platform.pinned(1), platform.memory(0)

    async def main() -> None:
        stream.enqueue("busy", write(platform.memory(0), 0), duration_us=100)  # the host is quicker
        stream.enqueue("upload", copy(pinned, rows), duration_us=10)
        pinned[0] = 2  # no wait for the upload

    platform.run(main)
    assert rows[0] == 2


def test_a_pinned_buffer_rewritten_after_its_copy_ran_was_copied_as_it_was(device_factory: PlatformFactory) -> None:
    platform = device_factory()
    stream = platform.device.stream("compute")
    pinned, rows = platform.pinned(1), platform.memory(0)

    async def main() -> None:
        stream.enqueue("upload", copy(pinned, rows), duration_us=10)
        await stream.synchronize("the upload has run")
        pinned[0] = 2

    platform.run(main)
    assert rows[0] == 1


def test_scalars_and_pointers_are_fixed_at_the_enqueue(device_factory: PlatformFactory) -> None:
    platform = device_factory()
    stream = platform.device.stream("compute")
    first, second = platform.memory(0), platform.memory(0)

    async def main() -> None:
        target, value = first, 5
        stream.enqueue("write", write(target, value), duration_us=10)
        target, value = second, 6
        await stream.synchronize("done")
        assert (target[0], value) == (0, 6)

    platform.run(main)
    assert (first[0], second[0]) == (5, 0)


def test_an_operation_reads_at_its_start(device_factory: PlatformFactory) -> None:
    platform = device_factory()
    a, b = platform.device.stream("a"), platform.device.stream("b")
    source, target = platform.memory(1), platform.memory(0)

    async def main() -> None:
        a.enqueue("copy", copy(source, target), duration_us=100)
        b.enqueue("overwrite", write(source, 2), duration_us=10)  # ends in the middle of the copy

    platform.run(main)
    assert target[0] == 1


def test_an_operation_writes_at_its_end(device_factory: PlatformFactory) -> None:
    platform = device_factory()
    a, b = platform.device.stream("a"), platform.device.stream("b")
    cell, seen = platform.memory(0), platform.memory(-1)

    async def main() -> None:
        a.enqueue("write", write(cell, 1), duration_us=100)
        b.enqueue("read", copy(cell, seen), duration_us=90)  # runs within the write

    platform.run(main)
    assert [op.name for op in platform.ops] == ["read", "write"]
    assert seen[0] == 0


def seen_during_load(device_factory: PlatformFactory, seed: int, *, guarded: bool) -> tuple[int, ...]:
    """Return what a reader sees of pages that a load overwrites, one copy operation per page."""
    platform = device_factory(RandomPicker(seed))
    load, compute = platform.device.stream("load"), platform.device.stream("compute")
    host, pages, seen = platform.memory(*[2] * PAGES), platform.memory(*[1] * PAGES), platform.memory(*[0] * PAGES)

    async def main() -> None:
        for page in range(PAGES):
            load.enqueue("copy page", copy(host[page : page + 1], pages[page : page + 1]), duration_us=10)
        done = platform.device.event("done")
        done.record(load)
        if guarded:
            compute.wait(done, "all pages are there")
        compute.enqueue("read", copy(pages, seen), duration_us=10)

    platform.run(main)
    return tuple(seen.tolist())


@pytest.mark.simulated("a GPU has no picker")
def test_a_reader_that_overlaps_a_copy_sees_torn_states_page_by_page(device_factory: PlatformFactory) -> None:
    states = {seen_during_load(device_factory, seed, guarded=False) for seed in range(200)}
    assert states == {(2,) * new + (1,) * (PAGES - new) for new in range(PAGES + 1)}


def test_a_reader_that_waits_sees_no_torn_state(device_factory: PlatformFactory) -> None:
    states = {seen_during_load(device_factory, seed, guarded=True) for seed in range(50)}
    assert states == {(2,) * PAGES}


@pytest.mark.parametrize("natural_us", [2, 14])
def test_the_torn_state_of_the_natural_schedule_follows_the_times(
    device_factory: PlatformFactory, natural_us: int
) -> None:
    platform = device_factory()
    load, compute = platform.device.stream("load"), platform.device.stream("compute")
    host, pages, seen = platform.memory(*[2] * PAGES), platform.memory(*[1] * PAGES), platform.memory(*[0] * PAGES)

    async def main() -> None:
        for page in range(PAGES):
            load.enqueue("copy page", copy(host[page : page + 1], pages[page : page + 1]), duration_us=10)
        compute.enqueue("work", write(platform.memory(0), 0), duration_us=natural_us)
        compute.enqueue("read", copy(pages, seen), duration_us=1)

    platform.run(main)
    (read,) = (op for op in platform.ops if op.name == "read")
    copied = [op for op in platform.ops if op.name == "copy page" and op.end_us <= read.start_us]
    assert seen.tolist() == [2] * len(copied) + [1] * (PAGES - len(copied))
    assert 0 <= len(copied) < PAGES
