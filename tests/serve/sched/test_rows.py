"""Request rows on the device, and the pinned buffers by which the host tells them."""

import asyncio

import numpy as np
import pytest

from repro.base.clock import run_virtual
from repro.serve.device.sim import SimDevice
from repro.serve.guards import Guards
from repro.serve.kv.stamps import prefix_words, token_words
from repro.serve.sched.batch import Batch, Member
from repro.serve.sched.request import Request, TextStream
from repro.serve.sched.rows import DeviceRows, Seat, Staging, StagingRing
from tests.serve.engine.builders import letters, make_request

TOKENS = np.array([3, 1, 4, 1, 5, 9], np.int64)


def test_prefix_hashes_are_the_same_whether_tokens_come_as_prompt_or_one_by_one() -> None:
    rows = DeviceRows(rows=2, context_tokens=8, page_tokens=4)
    rows.put_prompt(0, TOKENS, 8)
    rows.put_prompt(1, TOKENS[:2], 8)
    for place in range(2, len(TOKENS)):
        rows.next_token[1] = TOKENS[place]
        rows.append(np.array([1]), np.array([place]))
    assert (rows.prefix[0, :6] == rows.prefix[1, :6]).all()
    assert (rows.tokens[0, :6] == rows.tokens[1, :6]).all()


def test_another_token_or_another_order_is_another_prefix() -> None:
    def prefix(*tokens: int) -> int:
        return int(token_words(np.array(tokens), np.arange(len(tokens))).sum(dtype=np.uint64))

    assert len({prefix(1, 2), prefix(2, 1), prefix(1, 3), prefix(1), prefix(1, 2, 0)}) == 5


def test_an_upload_writes_pages_where_they_belong_and_leaves_other_rows_alone() -> None:
    rows = DeviceRows(rows=3, context_tokens=16, page_tokens=4)
    staging = Staging(SimDevice().event("uploaded"))
    staging.pages += [(1, 0, np.array([7, 8], np.int32)), (1, 2, np.array([9], np.int32))]
    staging.prompts.append(Seat(1, TOKENS, 12))
    staging.write_to(rows)
    assert rows.table.tolist() == [[0, 0, 0, 0], [7, 8, 9, 0], [0, 0, 0, 0]]
    assert rows.tokens[1, :6].tolist() == TOKENS.tolist() and not rows.tokens[[0, 2]].any()
    assert rows.limit.tolist() == [0, 12, 0]


BUFFERS = 3


def uploads(guards: Guards, steps: int) -> list[list[int]]:
    """Return the pages that each of `steps` slow uploads found in its buffer."""
    device = SimDevice()
    compute = device.stream("compute")
    ring = StagingRing(device, guards, BUFFERS)
    found: list[list[int]] = []

    async def main() -> None:
        for step in range(steps):
            staging = await ring.take()
            assert not staging.pages and not staging.prompts
            staging.pages.append((0, 0, np.array([step], np.int32)))

            def upload(_: object, staging: Staging = staging) -> None:
                found.append([int(pages[0]) for _, _, pages in staging.pages])

            compute.enqueue("upload", upload, duration_us=1000)
            staging.uploaded.record(compute)
        await compute.synchronize("the end")

    run_virtual(main(), device)
    return found


async def no_wait(_: object) -> None:
    await asyncio.sleep(0)


def test_a_buffer_is_rewritten_only_after_its_last_upload() -> None:
    steps = 3 * BUFFERS
    assert uploads(Guards(), steps) == [[step] for step in range(steps)]


def test_without_its_guard_a_late_upload_finds_the_next_steps_contents() -> None:
    steps = 3 * BUFFERS
    wrong = uploads(Guards().replaced(before_staging_reuse=no_wait), steps)
    assert wrong[BUFFERS - 1] != [BUFFERS - 1]
    assert uploads(Guards().replaced(before_staging_reuse=no_wait), BUFFERS) == [[0], [1], [2]]


def member(first: int, count: int, samples: bool) -> Member:
    wire = make_request(f"r{first}", range(40))
    return Member(Request(wire, np.arange(40), 1, TextStream(letters, ())), 0, first, count, samples)


def make_batch(*members: Member) -> Batch:
    return Batch(1, True, members, Staging(SimDevice().event("uploaded")), None)


def test_a_batch_lays_its_tokens_out_member_by_member() -> None:
    batch = make_batch(member(4, 3, False), member(0, 2, True), member(9, 1, True))
    layout = batch.layout()
    assert layout.member_of_token.tolist() == [0, 0, 0, 1, 1, 2]
    assert layout.positions.tolist() == [4, 5, 6, 0, 1, 9]
    assert layout.last_tokens.tolist() == [2, 4, 5]
    assert [member.row for member in batch.sampling_members] == [0, 0] and batch.rows.tolist() == [0, 0, 0]
    assert batch.num_tokens == 6


@pytest.mark.parametrize(("first", "count"), [(0, 1), (0, 4), (4, 3), (9, 1)])
def test_the_scored_pairs_of_a_member_are_each_tokens_whole_context(first: int, count: int) -> None:
    pairs = sum(position + 1 for position in range(first, first + count))
    assert make_batch(member(first, count, True)).token_keys == pairs


def test_a_row_that_is_taken_twice_in_one_step_is_the_second_ones() -> None:
    rows, staging = DeviceRows(1, 16, 4), Staging(SimDevice().event("uploaded"))
    longer = np.arange(10, 19)
    staging.prompts += [Seat(0, TOKENS, 12, first_token=7), Seat(0, longer, 16, first_token=8)]
    staging.write_to(rows)
    whole = np.array([*longer, 8, 8])
    assert rows.tokens[0, : len(whole)].tolist() == whole.tolist()
    assert (rows.prefix[0, : len(whole)] == prefix_words(whole)).all(), "a draft that belongs to another prefix"
    assert (rows.length[0], rows.next_token[0]) == (len(longer), 8)
