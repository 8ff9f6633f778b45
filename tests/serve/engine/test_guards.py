"""Two sides of each guard: in place, no schedule shows anything; left out and delayed, it is found.

Each story below brings one hazard about: what is delayed there is what the guard waits for.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from repro.fault.plan import Fault
from repro.schedule.pickers import Pick, RandomPicker, timed
from repro.serve.guards import Guards
from tests.serve.engine.builders import Main, Stack, delay, make_config, make_request, never, prompt, stamps_answer

LATE_US = 60_000  # longer than two steps


async def no_wait(_: object) -> None:
    """Be the host guard that waits for nothing."""


def later(enqueue: Callable[[], None]) -> None:
    """Be the loader that is not in time."""
    asyncio.get_running_loop().call_soon(enqueue)


async def evicted(stack: Stack, family: int, tokens: int) -> None:
    """Let a prefix go to the host and leave the device."""
    await stack.ask(make_request(f"first{family}", prompt(family, tokens), 1))
    await stack.engine.cache.drain()
    stack.engine.cache.evict_device(16)


async def returning(stack: Stack) -> None:
    """Load a long prefix back for a short suffix, into pages where another prompt was."""
    await evicted(stack, 1, 20)
    await stack.ask(make_request("filler", prompt(2, 30), 1))
    stack.engine.cache.evict_device(16)
    answer = await stack.ask(make_request("again", prompt(1, 22), 4))
    assert answer.last.cached_host_tokens == 20
    assert answer.tokens == stamps_answer(prompt(1, 22), 4)


async def reusing(stack: Stack) -> None:
    """Load back into pages that a step in flight still uses: its request has just ended."""
    await evicted(stack, 1, 20)
    stop = "".join(chr(32 + token % 95) for token in stamps_answer(prompt(2, 30), 1))
    ended, again = await stack.ask_all(
        make_request("ended", prompt(2, 30), 2, stop=(stop,)), make_request("again", prompt(1, 22), 4)
    )
    assert ended.last.finish == "stop" and again.last.cached_host_tokens == 20


async def writing_back(stack: Stack) -> None:
    """Back a page up whose last row is still to be stored: by the step after the one that ended its request."""
    [token] = stamps_answer(prompt(1, 19), 1)
    ended = await stack.ask(make_request("ended", prompt(1, 19), 5, stop=(chr(32 + token % 95),)))
    assert ended.last.finish == "stop"
    await stack.engine.cache.drain()
    stack.engine.cache.evict_device(16)
    answer = await stack.ask(make_request("again", (*prompt(1, 19), token, 5, 6), 2))
    assert answer.last.cached_host_tokens == 20


async def telling(stack: Stack) -> None:
    """Tell the device of one new request after another."""
    for number in range(4):
        await stack.ask(make_request(f"r{number}", prompt(number, 9), 9))


@dataclass(frozen=True)
class Side:
    """A hazard: which guards stand against it, what must be late for it, and the race that shows it."""

    without: dict[str, Callable[..., Any]]
    late: str
    story: Main
    race: tuple[str, str, str]  # the two accesses, and the stream that is not ordered with compute
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def signature(self) -> str:
        one, other, stream = self.race
        return f"ordering: {one} x {other}, no edge between compute and {stream}"


SIDES = {
    "before_index_read": Side(
        {"before_index_read": never}, "loadback.copy_layer", returning,
        ("loadback.copy_layer write", "forward.index read of device index", "load"),
    ),
    # The wait for the index keys of a layer orders its latents too, so both are left out.
    "before_latent_read": Side(
        {"before_latent_read": never, "before_index_read": never}, "loadback.copy_layer", returning,
        ("loadback.copy_layer write", "forward.attend read of device latent", "load"),
    ),
    "before_graph_replay": Side(
        {"before_graph_replay": never}, "loadback.copy_layer", returning,
        ("loadback.copy_layer write", "forward.attend read of device latent", "load"), {"graph_tokens_max": 8},
    ),
    # The loader enqueues the copies when the waits for their events are bound already.
    "on_load_start": Side(
        {"on_load_start": later}, "loadback.copy_layer", returning,
        ("loadback.copy_layer write", "forward.attend read of device latent", "load"),
    ),
    "before_page_reuse": Side(
        {"before_page_reuse": never}, "forward.store", reusing,
        ("loadback.copy_layer write", "forward.store write of device index", "load"), {"rows": 1},
    ),
    "before_write_back": Side(
        {"before_write_back": never}, "forward.store", writing_back,
        ("writeback.copy_layer read", "forward.store write of device index", "write"),
    ),
}  # fmt: skip
SCHEDULES = {"timed": timed, "random": RandomPicker(3), "another": RandomPicker(4)}


def run_side(side: Side, guards: Guards, pick: Pick = timed, faults: tuple[Fault, ...] = ()) -> Stack:
    return Stack(make_config(**side.config), guards=guards, faults=faults, pick=pick).run(side.story)


def without(name: str, **more: Any) -> Guards:
    return Guards().replaced(**SIDES[name].without, **more)


@pytest.mark.parametrize("name", SIDES)
@pytest.mark.parametrize("schedule", ["timed", "random", "another"])
def test_with_the_guard_no_delay_and_no_schedule_shows_anything(name: str, schedule: str) -> None:
    side = SIDES[name]
    late = delay(side.late, LATE_US, probability=0.5)
    stack = run_side(side, Guards(), SCHEDULES[schedule], (late,))
    stack.assert_clean()
    assert stack.injector.counts[late.name].fired > 0


@pytest.mark.parametrize("name", SIDES)
def test_without_the_guard_and_with_a_delay_wrong_bytes_are_read(name: str) -> None:
    side = SIDES[name]
    late = delay(side.late, LATE_US)
    stack = run_side(side, without(name), faults=(late,))
    assert side.signature in stack.signatures
    assert stack.bad_reads
    assert stack.injector.counts[late.name].reordered > 0


@pytest.mark.parametrize("name", SIDES)
def test_without_the_guard_ordering_convicts_though_nothing_is_late(name: str) -> None:
    assert SIDES[name].signature in run_side(SIDES[name], without(name)).signatures


@pytest.mark.parametrize("name", ["before_index_read", "before_latent_read"])
def test_a_late_load_is_only_read_early_by_the_reader_whose_guard_is_missing(name: str) -> None:
    stack = run_side(SIDES[name], without(name), faults=(delay("loadback.copy_layer", LATE_US),))
    first_hand = {bad.component for bad in stack.bad_reads if not bad.origin}
    assert first_hand == ({"index"} if name == "before_index_read" else {"index", "latent"})


def test_the_wait_for_index_keys_orders_the_latents_of_the_same_layer() -> None:
    guards = Guards().replaced(before_latent_read=never)
    run_side(SIDES["before_latent_read"], guards, faults=(delay("loadback.copy_layer", LATE_US),)).assert_clean()


def test_an_early_index_read_taints_what_the_request_stores_and_the_next_reader_is_told_the_origin() -> None:
    async def main(stack: Stack) -> None:
        await returning(stack)
        whole = prompt(1, 22) + stamps_answer(prompt(1, 22), 4)
        answer = await stack.ask(make_request("later", whole, 2))
        assert answer.last.cached_device_tokens == 24

    stack = Stack(guards=without("before_index_read"), faults=(delay("loadback.copy_layer", LATE_US),))
    stack.run(main)
    first_hand = {bad.id for bad in stack.bad_reads if bad.request == "again" and not bad.origin}
    inherited = [bad for bad in stack.bad_reads if bad.request == "later"]
    assert first_hand and inherited and all(bad.origin in first_hand for bad in inherited)
    assert set(stack.canary.corrupted) == {"again"} and stack.canary.poisoned == {"later": "again"}


@pytest.mark.parametrize("schedule", ["timed", "random"])
def test_an_index_store_that_waits_hides_the_missing_wait_of_the_read(schedule: str) -> None:
    side = SIDES["before_index_read"]
    config = make_config(index_store_waits=True)
    faults = (delay(side.late, LATE_US),)
    stack = Stack(config, guards=without("before_index_read"), faults=faults, pick=SCHEDULES[schedule])
    stack.run(side.story).assert_clean()


def test_a_replayed_graph_waits_for_the_whole_load_and_runs_no_guard_between_its_kernels() -> None:
    side = SIDES["before_graph_replay"]
    missing = Guards().replaced(before_index_read=never, before_latent_read=never)
    run_side(side, missing, faults=(delay(side.late, LATE_US),)).assert_clean()
    eager = Stack(guards=missing, faults=(delay(side.late, LATE_US),)).run(returning)
    assert eager.bad_reads


def test_index_keys_that_are_not_loaded_back_are_the_previous_owners() -> None:
    guards = Guards().replaced(loaded_components=lambda components: components[:1])
    stack = Stack(guards=guards).run(returning)
    assert not stack.signatures  # nothing is unordered: it is just not there
    assert {bad.component for bad in stack.bad_reads if not bad.origin} == {"index"}


# -- the staging buffers -----------------------------------------------------------------------------------
# With three of them the host never comes round before an upload has run: it reads the samples of every step
# but the last. One buffer leaves the guard alone.


def tell(guards: Guards, *faults: Fault, buffers: int = 1) -> Stack:
    return Stack(make_config(staging_buffers=buffers), guards=guards, faults=faults).run(telling)


def test_a_single_staging_buffer_is_enough_as_long_as_its_guard_is_there() -> None:
    tell(Guards(), delay("forward.upload", LATE_US)).assert_clean()


@pytest.mark.parametrize("prompt_upload", [10, 20, 30])
def test_a_rewritten_buffer_gives_a_request_another_ones_row_and_the_canary_sees_it(prompt_upload: int) -> None:
    guards = Guards().replaced(before_staging_reuse=no_wait)
    tell(guards).assert_clean()  # nothing is late
    stack = tell(guards, delay("forward.upload", LATE_US, skip=prompt_upload, times=1))
    assert set(stack.canary.corrupted) == {f"r{prompt_upload // 10}"}


def test_three_staging_buffers_need_no_guard() -> None:
    guards = Guards().replaced(before_staging_reuse=no_wait)
    tell(guards, delay("forward.upload", LATE_US), buffers=3).assert_clean()
