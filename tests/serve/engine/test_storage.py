"""An engine with a storage tier: what is in files comes back right, and nobody waits for it for long."""

import asyncio
from typing import Any

import pytest

from repro.base.probe import CacheEvent, RequestEvent
from repro.fault.kinds import Fail
from repro.fault.plan import Fault, When
from repro.schedule.pickers import RandomPicker
from repro.serve.engine import LoadedModel
from repro.serve.guards import Guards
from repro.serve.kv.storage_tier import PATIENCE_S
from tests.serve.engine.builders import (
    Main,
    Stack,
    delay,
    make_config,
    make_request,
    prompt,
    same_events,
    source_tokens,
    stamps_answer,
)

SLOW = delay("storage.read", 3e6, times=1)
UNREAD = Fault("storage.index", Fail(), When(skip=2))


def run(main: Main, *faults: Fault, guards: Guards | None = None, **config: Any) -> Stack:
    """Run a client against an engine whose host tier keeps one long prompt, and whose storage keeps many."""
    changed = make_config(**({"storage_pages": 64, "host_pages": 12} | config))
    return Stack(changed, faults=faults, guards=guards).run(main)


async def in_storage_only(stack: Stack, family: int = 1, tokens: int = 24) -> None:
    """Let a prompt leave the device and the host for storage, and others fill the pages where it was."""
    await stack.ask(make_request(f"first{family}", prompt(family, tokens), 1))
    await stack.engine.cache.drain()
    for filler in range(2):
        await stack.ask(make_request(f"filler{family}{filler}", prompt(50 + filler, 30), 1))
        for _ in range(2):  # under write_back the first eviction only writes
            await stack.engine.cache.drain()
            stack.engine.cache.evict_device(16)
    match = stack.engine.cache.match(prompt(family, tokens))
    assert len(match.device_pages) == match.host_hit_pages == 0


async def returning(stack: Stack) -> None:
    await in_storage_only(stack)
    answer = await stack.ask(make_request("again", prompt(1, 26), 4))
    assert answer.tokens == stamps_answer(prompt(1, 26), 4)


def storage_hits(stack: Stack) -> dict[str, int]:
    told = [event for event in stack.events if isinstance(event, RequestEvent) and event.what == "admitted"]
    return {event.request: int(event.detail["storage_hit"]) for event in told if "storage_hit" in event.detail}


@pytest.mark.parametrize("policy", ["write_through", "write_back"])
def test_a_prompt_that_is_in_storage_only_is_prefetched_loaded_back_and_right(policy: str) -> None:
    late = delay("storage.read", 20_000, probability=0.5)
    stack = run(returning, late, write_policy=policy)
    stack.assert_clean()
    assert storage_hits(stack) == {"again": 24} and stack.engine.stats().load_back_tokens_total == 24


def test_index_keys_that_are_not_read_cut_the_prefix_and_without_the_guard_are_the_previous_owners() -> None:
    stack = run(returning, UNREAD)
    stack.assert_clean()
    assert storage_hits(stack) == {"again": 8}
    stack = run(returning, UNREAD, guards=Guards().replaced(page_restored=lambda failed: "latent" not in failed))
    assert storage_hits(stack) == {"again": 24} and not stack.signatures
    assert {bad.component for bad in stack.bad_reads if not bad.origin} == {"index"}


def test_a_request_waits_for_a_slow_file_for_a_second_and_computes_the_rest() -> None:
    waited: list[float] = []

    async def main(stack: Stack) -> None:
        await in_storage_only(stack)
        asked_us = stack.device.now_us
        answer = await stack.ask(make_request("again", prompt(1, 26), 4))
        waited.append(stack.device.now_us - asked_us)
        assert answer.tokens == stamps_answer(prompt(1, 26), 4) and answer.last.cached_host_tokens == 0

    run(main, SLOW).assert_clean()
    assert PATIENCE_S * 1e6 < waited[0] < (PATIENCE_S + 1) * 1e6


def test_who_waits_for_a_file_holds_nobody_up_who_does_not() -> None:
    async def main(stack: Stack) -> None:
        await in_storage_only(stack)
        ended = []

        async def ask(name: str, family: int) -> None:
            await stack.ask(make_request(name, prompt(family, 26), 2))
            ended.append(name)

        await asyncio.gather(ask("waits", 1), ask("does not", 2))
        assert ended == ["does not", "waits"]

    run(main, SLOW).assert_clean()


def test_a_request_that_is_aborted_while_it_waits_for_a_file_ends_at_once_and_leaves_what_comes_to_others() -> None:
    async def main(stack: Stack) -> None:
        await in_storage_only(stack)
        asking = asyncio.create_task(stack.ask(make_request("a", prompt(1, 26), 4)))
        await asyncio.sleep(0.1)
        aborted_us = stack.device.now_us
        stack.engine.abort("a")
        assert (await asking).last.finish == "abort" and stack.device.now_us < aborted_us + 0.2e6
        await stack.engine.cache.drain()
        assert (await stack.ask(make_request("b", prompt(1, 26), 4))).last.cached_host_tokens == 24

    run(main, SLOW).assert_clean()


def test_a_flush_empties_storage_too() -> None:
    async def main(stack: Stack) -> None:
        await in_storage_only(stack)
        assert await stack.engine.flush_cache()
        assert (await stack.ask(make_request("again", prompt(1, 26), 4))).last.cached_host_tokens == 0

    run(main).assert_clean()


def test_one_seed_is_one_run_whatever_the_temporary_folder_is_called() -> None:
    one, other = (
        Stack(
            make_config(storage_pages=64, host_pages=12), pick=RandomPicker(3), faults=(delay("storage.read", 9e4),)
        ).run(returning)
        for _ in range(2)
    )
    assert same_events(one.events, other.events) and storage_hits(one)


def test_in_tensors_what_comes_from_storage_gives_the_answers_of_an_engine_without_tiers(
    bundled: LoadedModel,
) -> None:
    tokens = [source_tokens(3000)[400 * session :][: 140 + 20 * session] for session in range(6)]

    def answers(**config: Any) -> tuple[Stack, dict[str, tuple[int, ...]]]:
        said: dict[str, tuple[int, ...]] = {}

        async def main(stack: Stack) -> None:
            for turn in range(2):
                for session, asked in enumerate(tokens):
                    name = f"s{session}-{turn}"
                    said[name] = (await stack.ask(make_request(name, (*asked, *range(9 * turn)), 3))).tokens
                    await stack.engine.cache.drain()

        sizes = {"page_tokens": 32, "device_pages": 16, "host_pages": 16, "context_tokens": 256, "chunk_tokens": 128}
        config_of = make_config(**(sizes | {"numerics": "tensors", "checksums": True} | config))
        return Stack(config_of, bundled).run(main), said

    stack, with_storage = answers(storage_pages=64)
    _, without = answers(hicache=False)
    stack.assert_clean()
    assert sum(storage_hits(stack).values()) > 0 and with_storage == without
    assert not any(isinstance(event, CacheEvent) and event.what == "storage_miss" for event in stack.events)
