"""sched_double_free: an abort frees a request, and the step that was in flight for it frees it again."""

import asyncio

import pytest

from repro.base import rng
from repro.base.probe import PageEvent, RequestEvent
from repro.fault.defects import DEFECTS
from repro.serve.guards import Guards
from tests.serve.engine.builders import Stack, make_config, make_request, prompt

DEFECT = DEFECTS["sched_double_free"].apply(Guards())
CLIENTS = 6
TURNS = 6
PATIENCE_S = (0.02, 0.5)
SEEDS = [0, 1]


def cancelling(guards: Guards, seed: int) -> Stack:
    """Return a stack of few pages whose clients cancel half of their answers on the way."""
    stack = Stack(make_config(device_pages=24, rows=6, cache_check=guards is not DEFECT), guards=guards)

    async def client(number: int) -> None:
        draw = rng.generator(seed, "cancelling", number)
        for turn in range(TURNS):
            tokens = prompt(int(draw.integers(3)), int(draw.integers(5, 16)))
            patience_s = float(draw.uniform(*PATIENCE_S)) if draw.random() < 0.5 else None
            try:
                async with asyncio.timeout(patience_s):
                    await stack.ask(make_request(f"c{number}-t{turn}", tokens, int(draw.integers(6, 16))))
            except TimeoutError:
                pass

    async def main(_: Stack) -> None:
        await asyncio.gather(*(client(number) for number in range(CLIENTS)))

    return stack.run(main)


def late_results(stack: Stack) -> int:
    return sum(isinstance(event, RequestEvent) and event.what == "late_result" for event in stack.events)


@pytest.mark.parametrize("seed", SEEDS)
def test_two_requests_share_a_page_and_the_engine_serves_on(seed: int) -> None:
    stack = cancelling(DEFECT, seed)
    assert "ownership: a device page is freed twice" in stack.signatures
    assert "ownership: a device page is handed out while somebody owns it" in stack.signatures
    assert stack.bad_reads


@pytest.mark.parametrize("seed", SEEDS)
def test_with_the_guards_a_late_result_changes_nothing(seed: int) -> None:
    stack = cancelling(Guards(), seed)
    stack.assert_clean()
    assert late_results(stack) > 0


@pytest.mark.parametrize("guards", [Guards(), DEFECT], ids=["guards", "defect"])
def test_an_abort_in_flight_frees_once_and_with_the_defect_twice(guards: Guards) -> None:
    async def main(stack: Stack) -> None:
        asking = asyncio.create_task(stack.ask(make_request("a", prompt(1, 5), 12)))
        while len(stack.batches) < 3:
            await asyncio.sleep(0.001)
        stack.engine.abort("a")
        assert (await asking).last.finish == "abort"
        await stack.ask(make_request("b", prompt(2, 5), 1))

    stack = Stack(make_config(cache_check=guards is not DEFECT), guards=guards).run(main)
    freed = [event.owner for event in stack.events if isinstance(event, PageEvent) and event.what == "free"]
    assert freed.count("a") == 1  # whoever held it
    assert freed.count("") == (guards is DEFECT)  # and again, though nobody does
