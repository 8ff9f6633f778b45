"""Ranks answer as one engine does, token for token, split and replicated."""

import asyncio
from typing import Any

import pytest

from tests.engine.builders import make_request, prompt, stamps_answer
from tests.layersplit.builders import SplitStack, split_config

SHAPES: list[dict[str, Any]] = [
    {"split": False},
    {},
    {"scratch": 2},
    {"prefetch": True},
    {"scratch": 2, "prefetch": True},
]


@pytest.mark.parametrize("settings", SHAPES, ids=str)
@pytest.mark.parametrize("hicache", [True, False])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_answers_are_those_of_one_engine(ranks: int, hicache: bool, settings: dict[str, Any]) -> None:
    stack = SplitStack(split_config(ranks, engine={"hicache": hicache}, **settings))

    async def main(stack: SplitStack) -> None:
        for turn in range(3):
            requests = [make_request(f"r{n}.{turn}", prompt(n % 5, 11 + n + 3 * turn), answer=4) for n in range(7)]
            answers = await asyncio.gather(*(stack.ask(request) for request in requests))
            for request, answer in zip(requests, answers, strict=True):
                assert answer.tokens == stamps_answer(request.tokens, 4)
                assert answer.last.finish == "length"

    stack.run(main).assert_clean()
    stats = stack.engine.stats()
    assert stats.evicted_tokens_total > 0
    assert (stats.load_back_tokens_total > 0) == hicache
