"""What comes out of the bundled model: tokens, text, log-probabilities, and why an answer ends."""

from dataclasses import replace
from math import isnan
from typing import Any

import numpy as np
import pytest
import torch

from repro.base.probe import RequestEvent
from repro.serve.engine import LoadedModel
from repro.serve.kv.pool import COMPONENTS
from repro.serve.types import GenerateRequest, SamplingParams
from tests.serve.engine.builders import Answer, Stack, make_config, source_tokens
from tests.serve.model.builders import Cache

PROMPT = source_tokens(150)  # longer than the selection of 128
TENSORS: dict[str, Any] = {
    "numerics": "tensors", "page_tokens": 32, "device_pages": 32, "context_tokens": 256, "chunk_tokens": 64,
}  # fmt: skip


def request(name: str = "a", tokens: tuple[int, ...] = PROMPT, count: int = 12, **sampling: Any) -> GenerateRequest:
    return GenerateRequest(name, tokens, SamplingParams(max_tokens=count, **({"ignore_eos": True} | sampling)))


def answers(model: LoadedModel, *requests: GenerateRequest, **config: Any) -> list[Answer]:
    """Return the answers to requests that come at once."""
    got: list[Answer] = []

    async def main(stack: Stack) -> None:
        got.extend(await stack.ask_all(*requests))

    Stack(make_config(**(TENSORS | config)), model).run(main).assert_clean()
    return got


def test_a_seed_gives_the_same_answer_alone_in_a_batch_in_any_chunks_and_behind_a_cached_prefix(
    bundled: LoadedModel,
) -> None:
    drawn = {"temperature": 0.9, "top_p": 0.95, "seed": 5}
    [alone] = answers(bundled, request(**drawn))
    assert answers(bundled, request(**drawn))[0].updates == alone.updates
    mates = [request(f"m{n}", PROMPT[n + 1 :], 9 + n, temperature=1.0, seed=n) for n in range(3)]
    assert answers(bundled, *mates, request(**drawn), chunk_tokens=37)[3].updates == alone.updates

    async def again(stack: Stack) -> None:
        first = await stack.ask(request(**drawn))
        second = await stack.ask(request("b", **drawn))
        assert second.last.cached_device_tokens == 128
        assert (second.tokens, second.logprobs) == (first.tokens, first.logprobs) == (alone.tokens, alone.logprobs)

    Stack(make_config(**TENSORS), bundled).run(again)
    [other] = answers(bundled, request(**(drawn | {"seed": 6})))
    assert other.tokens != alone.tokens


def test_a_retracted_request_answers_as_it_does_alone(bundled: LoadedModel) -> None:
    asked = [request(f"r{n}", PROMPT[n : n + 60], 110, temperature=0.9, seed=n) for n in range(5)]
    got: list[Answer] = []

    async def main(stack: Stack) -> None:
        got.extend(await stack.ask_all(*asked))

    stack = Stack(make_config(**(TENSORS | {"device_pages": 17, "rows": 5, "retract": True})), bundled).run(main)
    stack.assert_clean()
    retracted = {each.request for each in stack.events if isinstance(each, RequestEvent) and each.what == "retracted"}
    assert retracted
    for each, answer in zip(asked, got, strict=True):
        if each.id in retracted:
            [alone] = answers(bundled, each)
            assert (answer.tokens, answer.logprobs, answer.text) == (alone.tokens, alone.logprobs, alone.text)


def test_without_a_prefix_cache_nothing_is_hit_and_the_answers_are_the_same(bundled: LoadedModel) -> None:
    [alone] = answers(bundled, request())

    async def twice(stack: Stack) -> None:
        first, second = [await stack.ask(request(name)) for name in ("a", "b")]
        assert (first.last.cached_device_tokens, second.last.cached_device_tokens) == (0, 0)
        assert second.tokens == first.tokens == alone.tokens

    Stack(make_config(**TENSORS, prefix_cache=False), bundled).run(twice).assert_clean()


def test_log_probabilities_and_alternatives_are_those_of_a_clean_forward(bundled: LoadedModel) -> None:
    greedy, drawn = answers(bundled, request(top_logprobs=3), request("b", temperature=0.9, seed=1, top_logprobs=2))
    for answer, width in ((greedy, 3), (drawn, 2)):
        assert bundled.weights is not None
        cache = Cache(bundled.weights, num_rows=1, max_tokens=256, page_size=32)
        tokens = torch.tensor([*PROMPT, *answer.tokens[:-1]])
        clean = cache.prefill(0, tokens, 64)[len(PROMPT) - 1 :].log_softmax(-1)
        assert clean.gather(1, torch.tensor(answer.tokens)[:, None])[:, 0].tolist() == list(answer.logprobs)
        values, ids = clean.topk(width)
        tops = [top for update in answer.updates for top in update.top_logprobs]
        assert [[token for token, _ in top] for top in tops] == ids.tolist()
        assert [[value for _, value in top] for top in tops] == values.tolist()
    assert [top[0][0] for update in greedy.updates for top in update.top_logprobs] == list(greedy.tokens)


def test_the_text_of_all_updates_is_the_text_of_all_tokens(bundled: LoadedModel) -> None:
    for answer in answers(bundled, request(count=40), request("b", temperature=1.5, seed=3, count=60)):
        assert answer.text == bundled.decode(list(answer.tokens))
        assert all(len(update.tokens) == 1 for update in answer.updates)


def test_max_tokens_ends_an_answer_and_the_counts_are_told(bundled: LoadedModel) -> None:
    [answer] = answers(bundled, request(count=7))
    assert (answer.last.finish, answer.last.matched_stop, len(answer.tokens)) == ("length", None, 7)
    assert (answer.last.prompt_tokens, answer.last.completion_tokens) == (150, 7)
    assert [update.finish for update in answer.updates[:-1]] == [None] * 6


def test_an_end_token_ends_an_answer_without_its_text_unless_ignored(bundled: LoadedModel) -> None:
    [whole] = answers(bundled, request())
    end = whole.tokens[4]
    first = whole.tokens.index(end)
    model = replace(bundled, eos=frozenset({end}))
    ended, ignored = answers(model, request(ignore_eos=False), request("b"))
    assert ended.tokens == whole.tokens[: first + 1]
    assert (ended.last.finish, ended.last.matched_stop) == ("stop", end)
    assert ended.text == bundled.decode(list(whole.tokens[:first]))
    assert ignored.tokens == whole.tokens


@pytest.mark.parametrize("start", [1, 4, 9])
def test_a_stop_string_over_token_borders_ends_an_answer_before_it(start: int, bundled: LoadedModel) -> None:
    [whole] = answers(bundled, request(count=24))
    stop = whole.text[start : start + 7]
    place = whole.text.index(stop)
    [cut] = answers(bundled, request(count=24, stop=("never in it", stop)))
    assert cut.text == whole.text[:place]
    assert (cut.last.finish, cut.last.matched_stop) == ("stop", stop)
    assert cut.tokens == whole.tokens[: len(cut.tokens)]
    assert stop in bundled.decode(list(cut.tokens)) and stop not in bundled.decode(list(cut.tokens[:-1]))


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_nan_in_one_used_page_changes_the_answer(component: Any, bundled: LoadedModel) -> None:
    async def main(stack: Stack) -> None:
        right = await stack.ask(request())
        pool = stack.engine.cache._pools["device"]
        node = stack.engine.cache.match(PROMPT).device_node
        assert node.device_pages is not None
        values = pool.values[component]
        assert values is not None
        # A NaN index key ranks first, so it shows where a position was scored but not kept: use the whole page.
        values[:, int(node.device_pages[1])] = torch.nan
        wrong = await stack.ask(request("b"))
        assert wrong.last.cached_device_tokens == 128
        assert wrong.logprobs != right.logprobs
        assert component == "index" or all(isnan(each) for each in wrong.logprobs)

    Stack(make_config(**TENSORS), bundled).run(main)


def test_a_nan_in_an_unused_page_changes_nothing(bundled: LoadedModel) -> None:
    async def main(stack: Stack) -> None:
        right = await stack.ask(request())
        cache = stack.engine.cache
        used = cache.match(PROMPT).device_pages
        unused = np.setdiff1d(np.arange(32), used)
        for values in cache._pools["device"].values.values():
            assert values is not None
            values[:, torch.from_numpy(unused)] = torch.nan
        assert (await stack.ask(request("b"))).logprobs == right.logprobs

    Stack(make_config(**TENSORS), bundled).run(main)
