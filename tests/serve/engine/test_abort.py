"""Clients that leave at any point: nothing leaks, nothing is freed twice, the others get right answers.

`Stack.run` ends with the engine's own idle check: free + cached = total on each tier, no page pinned, all
rows free. Requests, leavings, timings, sizes and the schedule are drawn.
"""

import asyncio
from contextlib import aclosing
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repro.base.probe import RequestEvent
from repro.fault.kinds import Evict, Fail, Tear
from repro.fault.plan import Fault, When
from repro.schedule.pickers import RandomPicker, timed
from repro.serve.config import EngineConfig
from repro.serve.types import RejectedError
from tests.serve.engine.builders import PAGE, Answer, Stack, delay, make_config, make_request, prompt, stamps_answer

STEP_US = 30_000  # about what a step of the small model takes under the prices of GLM-5


@dataclass(frozen=True)
class Client:
    """What one client does, in virtual microseconds from the start."""

    at_us: int
    family: int
    prompt_tokens: int
    answer_tokens: int
    leaves: str  # "stays", "aborts", "disconnects", "cancels"
    after_us: int


clients = st.builds(
    Client,
    at_us=st.integers(0, 60 * STEP_US),
    family=st.sampled_from([0, 0, 1]),
    prompt_tokens=st.one_of(st.integers(1, 24), st.integers(12, 24)),
    answer_tokens=st.integers(1, 8),
    leaves=st.sampled_from(["stays", "stays", "stays", "aborts", "disconnects", "cancels"]),
    after_us=st.integers(0, 10 * STEP_US),
)
policies = st.sampled_from(
    [
        {"write_policy": "write_through"},
        {"write_policy": "write_through_selective"},
        {"write_policy": "write_back"},
        {"write_policy": "write_back", "reclaim_host": True},
    ]
)
configs = st.builds(
    lambda policy, **fields: make_config(**policy, **fields),
    policies,
    device_pages=st.sampled_from([16, 17, 24]),
    host_pages=st.sampled_from([6, 24, 1]),
    rows=st.integers(1, 4),
    chunk_tokens=st.sampled_from([1, 5, 8, 32]),
    waiting_max=st.sampled_from([2, 64]),
    free_list=st.sampled_from(["lifo", "fifo", "deferred_sorted"]),
    storage_pages=st.sampled_from([0, 40, 6]),
)
FAULTS = (
    delay("loadback.copy_layer", 3 * STEP_US, probability=0.2),
    delay("writeback.copy_layer", 3 * STEP_US, probability=0.2),
    delay("forward.store", STEP_US, probability=0.1),
    delay("storage.read", 50 * STEP_US, probability=0.1),
    delay("storage.write", 3 * STEP_US, probability=0.2),
    Fault("storage.index", Fail(), When(probability=0.2)),
    Fault("storage.file", Tear(), When(probability=0.1)),
    Fault("memory.evict", Evict(8 * PAGE), When(probability=0.8)),
)


async def behave(stack: Stack, number: int, client: Client) -> None:
    """Be a client; check the answer of one that stays, and the beginning of any other."""
    await asyncio.sleep(client.at_us / 1e6)
    tokens = prompt(client.family, client.prompt_tokens)
    request = make_request(f"r{number}", tokens, client.answer_tokens)
    answer = Answer()

    async def listen() -> None:
        async with aclosing(stack.engine.generate(request)) as updates:  # type: ignore[type-var]
            async for update in updates:
                answer.updates.append(update)
                if client.leaves == "disconnects" and stack.device.now_us >= leaves_at_us:
                    return

    leaves_at_us = client.at_us + client.after_us
    listening = asyncio.create_task(listen())
    try:
        if client.leaves in ("aborts", "cancels"):
            await asyncio.sleep(client.after_us / 1e6)
            stack.engine.abort(request.id) if client.leaves == "aborts" else listening.cancel()
        await listening
    except RejectedError as error:
        assert error.status == 503
        return
    except asyncio.CancelledError:
        assert client.leaves == "cancels"
    expected = stamps_answer(tokens, client.answer_tokens)
    assert answer.tokens == expected[: len(answer.tokens)]
    if client.leaves == "stays":
        assert answer.tokens == expected and answer.last.finish == "length"
    elif client.leaves == "aborts":
        assert answer.last.finish == ("length" if answer.tokens == expected else "abort")


@settings(max_examples=120, deadline=None)
@given(configs, st.lists(clients, min_size=4, max_size=16), st.integers(0, 2**20), st.booleans(), st.booleans())
def test_clients_that_leave_at_any_time_leak_nothing_and_disturb_nobody(
    config: EngineConfig, behaviours: list[Client], seed: int, timely: bool, faulty: bool
) -> None:
    async def main(stack: Stack) -> None:
        await asyncio.gather(*(behave(stack, number, client) for number, client in enumerate(behaviours)))

    stack = Stack(config, faults=FAULTS if faulty else (), pick=timed if timely else RandomPicker(seed), seed=seed)
    stack.run(main)
    assert not stack.signatures and not stack.bad_reads
    told = [event for event in stack.events if isinstance(event, RequestEvent)]
    assert sum(e.what == "received" for e in told) == sum(e.what in ("finished", "aborted") for e in told)


# -- one test for each stage, so that a failure above has a name -------------------------------------------


async def abort_when(stack: Stack, condition: str) -> Answer:
    """Abort request a at the moment that `condition` names, while b runs to its end; return a's answer."""
    asked = asyncio.create_task(stack.ask(make_request("a", prompt(1, 20), 10)))
    mate = asyncio.create_task(stack.ask(make_request("b", prompt(2, 9), 6)))
    scheduler = stack.engine.scheduler
    reached = {
        "received": lambda: True,
        "waits": lambda: any(request.id == "a" for request in scheduler.requests.waiting),
        "prefills": lambda: any(0 < r.computed < 20 for r in scheduler.requests.running if r.id == "a"),
        "decodes": lambda: any(len(r.output) == 3 for r in scheduler.requests.running if r.id == "a"),
        "samples its last token": lambda: any(r.planned == 10 for r in scheduler.requests.running if r.id == "a"),
    }[condition]
    await asyncio.sleep(0)
    while not reached():
        await asyncio.sleep(1e-4)
    [request] = [r for r in (*scheduler.requests.waiting, *scheduler.requests.running) if r.id == "a"]
    stack.engine.abort("a")
    said = len(request.output)
    assert (await mate).tokens == stamps_answer(prompt(2, 9), 6)
    answer = await asked
    assert len(answer.tokens) == said, "tokens came after the abort"
    return answer


@pytest.mark.parametrize("condition", ["received", "waits", "prefills", "decodes", "samples its last token"])
def test_an_abort_at_each_stage_ends_the_request_and_nobody_else(condition: str) -> None:
    async def main(stack: Stack) -> None:
        answer = await abort_when(stack, condition)
        assert answer.last.finish == "abort"
        assert answer.tokens == stamps_answer(prompt(1, 20), 10)[: len(answer.tokens)]
        assert answer.last.completion_tokens == len(answer.tokens)

    stack = Stack(make_config(rows=1 if condition == "waits" else 4)).run(main)
    stack.assert_clean()
    assert stack.engine.stats().aborted_requests_total == 1


def test_an_abort_during_its_load_back_leaves_the_loaded_prefix_for_the_next_one() -> None:
    async def main(stack: Stack) -> None:
        await stack.ask(make_request("a", prompt(1, 17), 2))
        await stack.engine.cache.drain()
        stack.engine.cache.evict_device(16)
        asked = asyncio.create_task(stack.ask(make_request("b", prompt(1, 20), 4)))
        while not stack.engine.cache.pending:
            await asyncio.sleep(1e-5)
        stack.engine.abort("b")
        assert (await asked).last.finish == "abort"
        again = await stack.ask(make_request("c", prompt(1, 20), 4))
        assert again.last.cached_device_tokens == 16
        assert again.tokens == stamps_answer(prompt(1, 20), 4)

    stack = Stack(faults=(delay("loadback.copy_layer", 50_000),)).run(main)
    stack.assert_clean()
    assert stack.engine.stats().load_back_tokens_total == 16


def test_a_client_that_disconnects_before_its_first_token_aborts_its_request() -> None:
    async def main(stack: Stack) -> None:
        updates = stack.engine.generate(make_request("a", prompt(1, 20), 10))
        first = asyncio.ensure_future(anext(updates))
        await asyncio.sleep(1e-3)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        while stack.engine.scheduler.busy:
            await asyncio.sleep(1e-3)

    assert Stack().run(main).engine.stats().aborted_requests_total == 1


def test_what_waited_for_a_stop_string_is_given_out_when_the_request_is_aborted() -> None:
    expected = stamps_answer(prompt(1, 6), 4)
    text = "".join(chr(32 + token % 95) for token in expected)

    async def main(stack: Stack) -> None:
        request = make_request("a", prompt(1, 6), 20, stop=(text[2:] + "never",))
        updates = stack.engine.generate(request)
        answer = Answer([await anext(updates) for _ in range(4)])
        assert answer.text == text[:2]
        stack.engine.abort("a")
        answer.updates += [update async for update in updates]
        assert answer.text.startswith(text)

    Stack().run(main)


def test_an_engine_told_to_stop_when_its_last_request_is_aborted_does_stop() -> None:
    async def main(stack: Stack) -> None:
        await asyncio.sleep(1e-3)  # the engine sleeps
        asked = asyncio.create_task(stack.ask(make_request("a", prompt(1, 20), 5)))
        await asyncio.sleep(0)
        stack.engine.abort("a")
        stack.engine.stop()
        assert (await asked).last.finish == "abort"

    with pytest.raises(AssertionError, match="stopped by itself"):  # by the test, that is
        Stack().run(main)


def test_an_abort_of_nobody_and_a_second_abort_change_nothing() -> None:
    async def main(stack: Stack) -> None:
        stack.engine.abort("nobody")
        asked = asyncio.create_task(stack.ask(make_request("a", prompt(1, 20), 5)))
        await asyncio.sleep(1e-3)
        stack.engine.abort("a")
        stack.engine.abort("a")
        assert (await asked).last.finish == "abort"
        stack.engine.abort("a")

    assert Stack().run(main).engine.stats().aborted_requests_total == 1
