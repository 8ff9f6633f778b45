"""Ranks answer as one engine does, token for token, split and replicated."""

import asyncio
from functools import cache
from typing import Any

import pytest

from repro.fault.defects import DEFECTS
from repro.serve.guards import Guards
from tests.serve.engine.builders import make_request, prompt, stamps_answer
from tests.serve.layersplit.builders import SplitStack, split_config
from tests.serve.layersplit.turns import Answers, serve_turns, turn_config

SESSIONS = 3


@cache
def alone() -> Answers:
    """Return what one engine answers."""
    return serve_turns(turn_config(0), SESSIONS)[1]


SHAPES: list[dict[str, Any]] = [
    {"split": False},
    {},
    {"scratch": 2},
    {"prefetch": True},
    {"scratch": 2, "prefetch": True},
]


@pytest.mark.parametrize(
    ("ranks", "hicache", "settings"),
    [(1, True, {}), (3, False, {}), (4, True, {}), (4, False, {"split": False}), *((2, True, each) for each in SHAPES)],
    ids=str,
)
def test_answers_are_those_of_one_engine(ranks: int, hicache: bool, settings: dict[str, Any]) -> None:
    stack = SplitStack(split_config(ranks, engine={"hicache": hicache}, **settings))

    async def main(stack: SplitStack) -> None:
        for turn in range(2):
            requests = [make_request(f"r{n}.{turn}", prompt(n, 12 + n + 3 * turn), answer=4) for n in range(7)]
            answers = await asyncio.gather(*(stack.ask(request) for request in requests))
            for request, answer in zip(requests, answers, strict=True):
                assert answer.tokens == stamps_answer(request.tokens, 4)
                assert answer.last.finish == "length"

    stack.run(main).assert_clean()
    stats = stack.engine.stats()
    assert stats.evicted_tokens_total > 0
    assert (stats.load_back_tokens_total > 0) == hicache


@pytest.mark.parametrize(("ranks", "settings"), [(2, {"split": False}), (3, {}), (4, {"scratch": 2, "prefetch": True})])
def test_answers_with_tensors_are_those_of_one_engine_bit_for_bit(ranks: int, settings: dict[str, Any]) -> None:
    stack, answers = serve_turns(turn_config(ranks, **settings), SESSIONS)
    assert answers == alone()
    stack.assert_clean()


def test_answers_with_tensors_depend_on_what_is_broadcast() -> None:
    guards = DEFECTS["layersplit_silent_noop"].apply(Guards())
    _, answers = serve_turns(turn_config(3), SESSIONS, guards)
    assert answers != alone()
