"""sched_retract_insert: pages run out in decode, and the youngest request gives back what it has, and no more."""

import asyncio

import pytest

from repro.base import rng
from repro.base.probe import RequestEvent
from repro.fault.defects import DEFECTS
from repro.serve.config import PdConfig
from repro.serve.guards import Guards
from tests.serve.engine.builders import PAGE, Answer, Stack, make_config, make_request, prompt, stamps_answer

DEFECT = DEFECTS["sched_retract_insert"].apply(Guards())
CLIENTS = 6
TURNS = 6
SEEDS = [0, 1]


def crowded(guards: Guards, seed: int) -> Stack:
    """Return a stack of few pages whose clients ask long prompts again, and get long answers."""
    stack = Stack(make_config(device_pages=20, rows=6, retract=True, cache_check=guards is not DEFECT), guards=guards)

    async def client(number: int) -> None:
        draw = rng.generator(seed, "crowded", number)
        for turn in range(TURNS):
            tokens = prompt(int(draw.integers(4)), int(draw.integers(9, 17)))
            request = make_request(f"c{number}-t{turn}", tokens, int(draw.integers(8, 17)))
            answer = await stack.ask(request)
            if guards is not DEFECT:
                assert answer.tokens == stamps_answer(tokens, request.sampling.max_tokens)
                assert answer.last.completion_tokens == request.sampling.max_tokens
                assert answer.last.prompt_tokens == len(tokens)

    async def main(_: Stack) -> None:
        await asyncio.gather(*(client(number) for number in range(CLIENTS)))

    return stack.run(main)


def retracted(stack: Stack) -> list[RequestEvent]:
    return [event for event in stack.events if isinstance(event, RequestEvent) and event.what == "retracted"]


@pytest.mark.parametrize("seed", SEEDS)
def test_retracted_requests_come_again_and_say_what_they_say_alone(seed: int) -> None:
    stack = crowded(Guards(), seed)
    stack.assert_clean()
    assert len(retracted(stack)) > 1


@pytest.mark.parametrize("seed", SEEDS)
def test_pages_that_the_tree_took_are_read_after_they_were_freed(seed: int) -> None:
    stack = crowded(DEFECT, seed)
    assert any(each.startswith("ownership: forward.") for each in stack.signatures)
    assert stack.bad_reads


def hits(stack: Stack, request: str) -> list[int]:
    """Return how many tokens were cached, on either tier, each time a request was admitted."""
    moves = [event for event in stack.events if isinstance(event, RequestEvent) and event.request == request]
    details = [event.detail for event in moves if event.what == "admitted"]
    return [int(detail["device_hit"]) + int(detail["host_hit"]) for detail in details]


def interrupted(guards: Guards) -> tuple[Stack, Answer]:
    """Return a stack in which three answers grow until they take the pages of a prompt that is half computed."""
    late = make_request("late", prompt(1, 26), 4)

    async def main(stack: Stack) -> None:
        growing = [asyncio.create_task(stack.ask(make_request(f"r{n}", prompt(n, 4), 24))) for n in (2, 3, 4)]
        while len(stack.batches) < 4:
            await asyncio.sleep(0.001)
        answers.append(await stack.ask(late))
        await asyncio.gather(*growing)

    answers: list[Answer] = []
    stack = Stack(
        make_config(device_pages=20, chunk_tokens=2, retract=True, cache_check=guards is not DEFECT), guards=guards
    ).run(main)
    return stack, answers[0]


def test_a_prompt_retracted_between_its_chunks_goes_on_where_the_tree_has_it() -> None:
    stack, answer = interrupted(Guards())
    stack.assert_clean()
    assert answer.tokens == stamps_answer(prompt(1, 26), 4)
    first, *_ = retracted(stack)
    assert (first.request, first.detail["tokens"]) == ("late", 0)
    again = hits(stack, "late")[1]
    assert again >= 2 * PAGE
    assert answer.last.cached_device_tokens == answer.last.cached_host_tokens == 0  # as it was admitted first


def test_with_the_defect_it_goes_on_in_pages_that_are_somebody_elses() -> None:
    stack, answer = interrupted(DEFECT)
    assert {bad.request for bad in stack.bad_reads} == {"late"}
    assert "ownership: forward.index reads a device page after it was freed" in stack.signatures
    assert answer.last.finish == "length"  # nobody tells the client


def test_a_request_that_needs_no_page_is_never_retracted() -> None:
    async def main(stack: Stack) -> None:
        await stack.ask_all(*(make_request(f"r{n}", prompt(n, 6), 2) for n in range(8)))

    stack = Stack(make_config(retract=True)).run(main)
    stack.assert_clean()
    assert not retracted(stack)


@pytest.mark.parametrize(("key", "value"), [("pd", PdConfig()), ("speculative_drafts", 2), ("prefix_cache", False)])
def test_what_does_not_go_with_retraction_is_refused(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"retract.*{key}"):
        make_config(retract=True, **{key: value})
