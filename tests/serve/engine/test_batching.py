"""Continuous batching, chunked prefill and overlap: what runs in which step, and the right answers anyway."""

import asyncio

import pytest

from repro.base.probe import CacheEvent, LimitEvent, RequestEvent
from repro.fault.kinds import Evict
from repro.fault.plan import Fault, When
from repro.schedule.pickers import RandomPicker
from repro.serve.kv.radix.node import TokenRun
from repro.serve.sched.keys import CacheKeys
from repro.serve.sched.request import Request
from repro.serve.types import RejectedError
from tests.serve.engine.builders import (
    PAGE,
    VOCABULARY,
    Answer,
    Stack,
    delay,
    make_config,
    make_request,
    prompt,
    stamps_answer,
)


def assert_right(answer: Answer, tokens: tuple[int, ...], count: int) -> None:
    assert answer.tokens == stamps_answer(tokens, count)
    assert answer.last.finish == "length"
    assert (answer.last.prompt_tokens, answer.last.completion_tokens) == (len(tokens), count)


# -- what a step holds ------------------------------------------------------------------------------------------------


def test_a_prompt_is_prefilled_in_chunks_and_only_the_last_one_samples() -> None:
    async def main(stack: Stack) -> None:
        assert_right(await stack.ask(make_request("a", prompt(1, 20), 2)), prompt(1, 20), 2)

    stack = Stack(make_config(chunk_tokens=8)).run(main)
    assert stack.steps == [{"a": 8}, {"a": 8}, {"a": 4}, {"a": 1}]
    assert [batch.members[0].samples for batch in stack.batches] == [False, False, True, True]
    stack.assert_clean()


def test_prompts_share_a_steps_budget_in_order_of_arrival() -> None:
    async def main(stack: Stack) -> None:
        prompts = {"a": prompt(1, 5), "b": prompt(2, 9), "c": prompt(3, 3)}
        answers = await stack.ask_all(*(make_request(name, tokens) for name, tokens in prompts.items()))
        for answer, tokens in zip(answers, prompts.values(), strict=True):
            assert_right(answer, tokens, 1)

    stack = Stack(make_config(chunk_tokens=8)).run(main)
    assert stack.steps == [{"a": 5, "b": 3}, {"b": 6, "c": 2}, {"c": 1}]


def test_a_request_joins_those_that_decode_and_leaves_without_stopping_them() -> None:
    async def main(stack: Stack) -> None:
        first = asyncio.create_task(stack.ask(make_request("a", prompt(1, 6), 12)))
        while len(stack.batches) < 3:
            await asyncio.sleep(1e-4)
        assert_right(await stack.ask(make_request("b", prompt(2, 6), 3)), prompt(2, 6), 3)
        assert_right(await first, prompt(1, 6), 12)

    stack = Stack().run(main)
    joined = stack.steps.index({"b": 6})
    assert stack.steps[:joined] == [{"a": 6}] + [{"a": 1}] * (joined - 1), "b did not come while a decoded"
    assert stack.steps[joined + 1 : joined + 3] == [{"a": 1, "b": 1}] * 2
    assert stack.steps[-1] == {"a": 1}
    stack.assert_clean()


def test_no_more_requests_run_at_once_than_there_are_rows() -> None:
    async def main(stack: Stack) -> None:
        prompts = [prompt(family, 5) for family in range(7)]
        answers = await stack.ask_all(*(make_request(f"r{n}", tokens, 3) for n, tokens in enumerate(prompts)))
        for answer, tokens in zip(answers, prompts, strict=True):
            assert_right(answer, tokens, 3)

    stack = Stack(make_config(rows=2)).run(main)
    assert max(len(step) for step in stack.steps) == 2
    admitted = [e.request for e in stack.events if isinstance(e, RequestEvent) and e.what == "admitted"]
    assert admitted == [f"r{number}" for number in range(7)]


# -- overlap ----------------------------------------------------------------------------------------------------------


def test_each_step_is_enqueued_before_the_samples_of_the_one_before_it_are_read() -> None:
    async def main(stack: Stack) -> None:
        await stack.ask_all(make_request("a", prompt(1, 20), 6), make_request("b", prompt(2, 9), 6))

    stack = Stack().run(main)
    learnt = {sync.source: sync.host for sync in stack.syncs("the step's samples")}
    downloads = stack.ops("forward.download")
    assert len(downloads) == len(learnt) == len(stack.batches) > 8
    for earlier in downloads[:-1]:
        following = stack.ops("forward", step=earlier.step + 1)
        assert all(op.host < learnt[earlier.stream, earlier.index] for op in following)
        assert following[0].enqueued_us < earlier.end_us


def test_the_device_does_not_wait_for_the_host_between_two_decode_steps() -> None:
    async def main(stack: Stack) -> None:
        await stack.ask(make_request("a", prompt(1, 6), 8))

    stack = Stack().run(main)
    uploads, downloads = stack.ops("forward.upload"), stack.ops("forward.download")
    gaps = [after.start_us - before.end_us for before, after in zip(downloads[1:-1], uploads[2:], strict=True)]
    assert max(gaps) == 0


def test_a_request_that_has_ended_may_ride_along_once_and_its_extra_token_is_dropped() -> None:
    expected = stamps_answer(prompt(1, 6), 8)
    stop = "".join(chr(32 + token % 95) for token in expected[3:5])

    async def main(stack: Stack) -> None:
        answer = await stack.ask(make_request("a", prompt(1, 6), 20, stop=(stop,)))
        assert answer.tokens == expected[:5]
        assert (answer.last.finish, answer.last.matched_stop, answer.last.completion_tokens) == ("stop", stop, 5)
        assert answer.text == "".join(chr(32 + token % 95) for token in expected[:3])

    stack = Stack().run(main)
    assert len(stack.batches) == 6
    stack.assert_clean()


def test_a_request_does_not_wait_for_the_copies_of_the_one_before_it() -> None:
    async def main(stack: Stack) -> None:
        await stack.ask(make_request("a", prompt(1, 9), 1))
        assert stack.engine.cache.pending
        await stack.ask(make_request("b", prompt(2, 9), 1))
        assert stack.engine.cache.pending and not stack.ops("writeback.copy_layer")

    Stack(faults=(delay("writeback.copy_layer", 1e6),)).run(main).assert_clean()


def test_a_request_that_ends_by_its_length_does_not_ride_along() -> None:
    async def main(stack: Stack) -> None:
        await stack.ask(make_request("a", prompt(1, 6), 5))

    assert len(Stack().run(main).batches) == 5


# -- bounds -----------------------------------------------------------------------------------------------------------


def test_a_full_queue_refuses_and_takes_requests_again_later() -> None:
    async def main(stack: Stack) -> None:
        running = [asyncio.create_task(stack.ask(make_request(f"r{n}", prompt(n, 5), 4))) for n in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(RejectedError, match="3 requests are waiting") as refused:
            await stack.ask(make_request("late", prompt(9, 5)))
        assert refused.value.status == 503
        await asyncio.gather(*running)
        assert_right(await stack.ask(make_request("late", prompt(9, 5))), prompt(9, 5), 1)

    stack = Stack(make_config(waiting_max=3)).run(main)
    assert [event.what for event in stack.events if isinstance(event, LimitEvent)] == ["waiting_queue"]


@pytest.mark.parametrize(
    ("tokens", "why"),
    [
        ((), "no tokens"),
        ((1, VOCABULARY), "between 0 and 95"),
        ((-1,), "between 0 and 95"),
        (prompt(1, 32), "32 tokens, the model's context is 32"),
    ],
    ids=["empty", "above", "below", "long"],
)
def test_what_can_never_run_is_refused_with_the_reason(tokens: tuple[int, ...], why: str) -> None:
    async def main(stack: Stack) -> None:
        with pytest.raises(RejectedError, match=why) as refused:
            await stack.ask(make_request("a", tokens))
        assert refused.value.status == 400

    Stack().run(main)


def test_an_id_that_runs_is_refused_and_free_again_when_its_request_has_ended() -> None:
    async def main(stack: Stack) -> None:
        first = asyncio.create_task(stack.ask(make_request("a", prompt(1, 5), 3)))
        await asyncio.sleep(0)
        with pytest.raises(RejectedError, match="already running"):
            await stack.ask(make_request("a", prompt(2, 5)))
        await first
        assert_right(await stack.ask(make_request("a", prompt(2, 5))), prompt(2, 5), 1)

    Stack().run(main)


def test_an_answer_ends_where_the_context_ends() -> None:
    async def main(stack: Stack) -> None:
        answer = await stack.ask(make_request("a", prompt(1, 29), 50))
        assert_right(answer, prompt(1, 29), 3)

    Stack().run(main).assert_clean()


def test_an_engine_that_breaks_says_so_and_does_not_hang() -> None:
    async def main(stack: Stack) -> None:
        stack.engine.cache.tree.pin = None  # type: ignore[method-assign, assignment]
        await stack.ask(make_request("a", prompt(1, 5)))

    with pytest.raises(TypeError):
        Stack().run(main)


# -- memory pressure --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("free_list", ["lifo", "fifo", "deferred_sorted"])
@pytest.mark.parametrize("policy", ["write_through", "write_through_selective", "write_back", "off"])
@pytest.mark.parametrize("pick", ["timed", "random"])
def test_a_tiny_pool_gives_right_answers_and_never_stands_still(free_list: str, policy: str, pick: str) -> None:
    hicache = {"hicache": False} if policy == "off" else {"write_policy": policy}
    config = make_config(device_pages=16, host_pages=12, free_list=free_list, **hicache)

    async def session(stack: Stack, family: int) -> None:
        for turn, length in enumerate((9, 17, 14, 26)):
            tokens = prompt(family % 3, length + family)
            count = min(3 + family, 32 - len(tokens))
            assert_right(await stack.ask(make_request(f"s{family}-{turn}", tokens, count)), tokens, count)

    async def main(stack: Stack) -> None:
        await asyncio.gather(*(session(stack, family) for family in range(5)))

    stack = Stack(config, pick=RandomPicker(11)) if pick == "random" else Stack(config)
    stack.run(main).assert_clean()
    cache = [event.what for event in stack.events if isinstance(event, CacheEvent)]
    assert cache.count("evict_device") > 3 and cache.count("prefix_hit") > 3
    assert policy == "off" or "write_back" in cache


def test_requests_of_one_prompt_that_outgrow_each_other_do_not_take_promised_room() -> None:
    # b is admitted before a's prompt is cached and after it pins it: c and d count on a's pages as room.
    same = prompt(1, 20)
    wanted = {"a": (same, 1), "b": (same, 12), "c": (prompt(2, 8), 24), "d": (prompt(3, 8), 24)}

    async def main(stack: Stack) -> None:
        requests = [make_request(name, tokens, count) for name, (tokens, count) in wanted.items()]
        answers = await stack.ask_all(*requests)
        for answer, (tokens, count) in zip(answers, wanted.values(), strict=True):
            assert_right(answer, tokens, count)

    for chunk in (3, 4, 8):
        Stack(make_config(chunk_tokens=chunk, hicache=False, rows=6)).run(main).assert_clean()


@pytest.mark.parametrize("hicache", [True, False])
def test_nobody_is_admitted_on_room_that_a_running_answer_will_need(hicache: bool) -> None:
    async def main(stack: Stack) -> None:
        prompts = [prompt(family, 4) for family in range(3)]
        answers = await stack.ask_all(*(make_request(f"r{n}", tokens, 28) for n, tokens in enumerate(prompts)))
        for answer, tokens in zip(answers, prompts, strict=True):
            assert_right(answer, tokens, 28)

    stack = Stack(make_config(hicache=hicache)).run(main)
    assert max(len(step) for step in stack.steps) == 2, "16 pages are enough for two answers to their end"


def test_a_request_that_waits_for_room_builds_its_cache_keys_once(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []
    first = CacheKeys.first
    asked: list[str] = []
    hit = CacheKeys.hit

    def noted(self: CacheKeys, request: Request, count: int) -> TokenRun:
        built.extend([request.id] if request.state == "waiting" else [])
        return first(self, request, count)

    def noted_hit(self: CacheKeys, request: Request) -> TokenRun:
        asked.append(request.id)
        return hit(self, request)

    async def main(stack: Stack) -> None:
        await stack.ask_all(*(make_request(f"r{n}", prompt(n, 4), 28) for n in range(3)))

    monkeypatch.setattr(CacheKeys, "first", noted)
    monkeypatch.setattr(CacheKeys, "hit", noted_hit)
    Stack(make_config()).run(main)
    assert asked.count("r2") > 10, "it waits for many rounds"
    assert sorted(built) == ["r0", "r1", "r2"]


def test_eviction_that_somebody_asks_for_at_any_time_changes_no_answer() -> None:
    pressure = Fault("memory.evict", Evict(4 * PAGE), When(probability=0.5))

    async def main(stack: Stack) -> None:
        for turn in range(4):
            tokens = prompt(1, 8 + 5 * turn)
            assert_right(await stack.ask(make_request(f"r{turn}", tokens, 4)), tokens, 4)

    stack = Stack(faults=(pressure,)).run(main)
    stack.assert_clean()
    assert stack.engine.stats().evicted_tokens_total > 0


# -- the cache as requests see it -------------------------------------------------------------------------------------


def test_a_prompt_is_cached_while_its_first_request_still_decodes() -> None:
    async def main(stack: Stack) -> None:
        first = asyncio.create_task(stack.ask(make_request("a", prompt(1, 13), 15)))
        while len(stack.batches) < 5:
            await asyncio.sleep(1e-4)
        second = await stack.ask(make_request("b", prompt(1, 13), 2))
        assert second.last.cached_device_tokens == 12
        assert second.tokens == (await first).tokens[:2]

    Stack().run(main).assert_clean()


def test_a_prefix_that_went_to_the_host_comes_back_and_is_counted_as_such() -> None:
    async def main(stack: Stack) -> None:
        await stack.ask(make_request("a", prompt(1, 17), 4))
        await stack.engine.cache.drain()
        stack.engine.cache.evict_device(16)
        again = await stack.ask(make_request("b", prompt(1, 21), 3))
        assert (again.last.cached_device_tokens, again.last.cached_host_tokens) == (0, 16)
        assert_right(again, prompt(1, 21), 3)
        stats = stack.engine.stats()
        assert (stats.load_back_tokens_total, stats.evicted_tokens_total) == (16, 20)

    stack = Stack().run(main)
    stack.assert_clean()
    assert stack.steps[-3:] == [{"b": 5}, {"b": 1}, {"b": 1}]


def test_a_prefix_on_both_tiers_is_counted_on_each() -> None:
    async def main(stack: Stack) -> None:
        for name, tokens in (("a", 9), ("b", 17)):
            await stack.ask(make_request(name, prompt(1, tokens)))
        await stack.engine.cache.drain()
        stack.engine.cache.evict_device(1)  # the leaf, two pages
        again = await stack.ask(make_request("c", prompt(1, 18)))
        assert (again.last.cached_device_tokens, again.last.cached_host_tokens) == (8, 8)

    Stack().run(main).assert_clean()


def test_one_request_is_one_hit_and_the_second_backs_its_prefix_up() -> None:
    async def main(stack: Stack) -> None:
        await stack.ask(make_request("a", prompt(1, 13), 4))
        await stack.engine.cache.drain()
        assert stack.engine.cache.tree.host_pages_total == 0
        await stack.ask(make_request("b", prompt(1, 13), 4))
        await stack.engine.cache.drain()
        assert stack.engine.cache.tree.host_pages_total == 4  # prompt and answer, both seen twice

    Stack(make_config(write_policy="write_through_selective")).run(main)


def test_a_flush_forgets_everything_and_is_refused_while_requests_run() -> None:
    async def main(stack: Stack) -> None:
        running = asyncio.create_task(stack.ask(make_request("a", prompt(1, 13), 4)))
        await asyncio.sleep(0)
        assert not await stack.engine.flush_cache()
        await running
        assert await stack.engine.flush_cache()
        again = await stack.ask(make_request("b", prompt(1, 13), 4))
        assert again.last.cached_device_tokens == 0
        assert stack.engine.stats().host_used > 0

    Stack().run(main).assert_clean()


def test_a_flush_that_meets_new_requests_gives_way() -> None:
    async def main(stack: Stack) -> None:
        for turn in range(6):
            await stack.ask(make_request(f"a{turn}", prompt(turn, 9), 2))
            flushing = asyncio.create_task(stack.engine.flush_cache())
            await asyncio.sleep(turn * 1e-5)
            assert_right(await stack.ask(make_request(f"b{turn}", prompt(turn, 9), 2)), prompt(turn, 9), 2)
            await flushing

    slow = delay("writeback.copy_layer", 3000)
    Stack(faults=(slow,)).run(main).assert_clean()


def test_a_flush_that_sees_a_request_come_and_go_leaves_its_copies_alone() -> None:
    async def main(stack: Stack) -> None:
        await stack.ask(make_request("a", prompt(1, 9), 2))
        flushing = asyncio.create_task(stack.engine.flush_cache())
        await asyncio.sleep(0)
        await stack.ask(make_request("b", prompt(2, 9), 2))
        assert not flushing.done() and not stack.engine.scheduler.busy
        assert not await flushing
        await stack.engine.cache.drain()
        assert await stack.engine.flush_cache()

    Stack(faults=(delay("writeback.copy_layer", 100_000),)).run(main).assert_clean()
