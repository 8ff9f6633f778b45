"""A disaggregated stack answers as one engine does."""

import asyncio

import pytest

from tests.serve.engine.builders import make_request, prompt, stamps_answer
from tests.serve.pd.builders import PdStack, pd_config
from tests.serve.spec.builders import drafting_model


@pytest.mark.parametrize("drafts", [0, 3])
@pytest.mark.parametrize("workers", [(1, 1), (2, 1), (1, 2), (3, 2)])
def test_answers_are_those_of_one_engine(workers: tuple[int, int], drafts: int) -> None:
    prefill, decode = workers
    stack = PdStack(pd_config(prefill=prefill, decode=decode, drafts=drafts), drafting_model())

    async def main(stack: PdStack) -> None:
        requests = [make_request(f"r{n}", prompt(n % 3, 9 + n), answer=6) for n in range(8)]
        answers = await asyncio.gather(*(stack.ask(request) for request in requests))
        for request, answer in zip(requests, answers, strict=True):
            assert answer.tokens == stamps_answer(request.tokens, 6)
            assert answer.last.finish == "length"
            assert (answer.last.speculation is not None) == bool(drafts)

    stack.run(main).assert_clean()
