"""The history: what is kept, what is cut, and that the cut is counted."""

import json
from typing import Any

import pytest

from repro.load.answer import Answer, AnswerCall
from repro.load.history import MARGIN_TOKENS, History, Prompt
from repro.trace.format import Message, ToolCall


def words(text: str) -> int:
    return len(text.split())


def history(limit: int | None = None) -> History:
    return History((), words, limit)


def told(prompt: Prompt) -> list[dict[str, Any]]:
    return [json.loads(message) for message in prompt.messages]


def contents(prompt: Prompt) -> list[str]:
    return [message["content"] for message in told(prompt)]


def answer(text: str, *calls: AnswerCall) -> Answer:
    return Answer(contents=[text], calls=list(calls))


def long(name: str, count: int) -> str:
    return "\n".join(f"{name} {index}" for index in range(count // 2))


def grown(limit: int | None, turns: int, size: int = 100) -> tuple[History, list[Prompt]]:
    """A session of `turns` turns whose every answer and input has `size` tokens."""
    made = history(limit)
    prompts = []
    for turn in range(turns):
        first = [Message("system", "rules"), Message("user", "the task")]
        made.add_input([*(first if turn == 0 else []), Message("user", long(f"in{turn}", size))])
        prompts.append(made.prompt(50))
        made.add_generated(answer(long(f"out{turn}", size)))
    return made, prompts


def test_prompts_extend_each_other_while_they_fit() -> None:
    _, prompts = grown(None, 6)
    for before, after in zip(prompts, prompts[1:], strict=False):
        assert after.messages[: len(before.messages)] == before.messages
    assert prompts[-1].dropped_turns == 0


def test_a_long_session_keeps_system_and_task_and_drops_oldest_turns_to_half_the_limit() -> None:
    limit = 2000
    _, prompts = grown(limit, 40)
    for turn, prompt in enumerate(prompts):
        assert contents(prompt)[:2] == ["rules", "the task"]
        assert contents(prompt)[-1] == long(f"in{turn}", 100)  # what is asked is always there
        assert prompt.tokens <= limit - 50
    drops = [after.dropped_turns - before.dropped_turns for before, after in zip(prompts, prompts[1:], strict=False)]
    assert sum(drop > 0 for drop in drops) <= 8  # in blocks, not every turn
    cut = next(turn for turn, drop in enumerate(drops, start=1) if drop)
    assert prompts[cut].tokens <= limit // 2 + 300
    assert prompts[-1].dropped_characters >= prompts[-1].dropped_turns * len(long("in1", 100)) * 2 * 0.9


def test_between_drops_the_prefix_stays() -> None:
    _, prompts = grown(2000, 40)
    same = sum(
        after.messages[: len(before.messages)] == before.messages
        for before, after in zip(prompts, prompts[1:], strict=False)
    )
    assert same >= 31


def test_a_task_longer_than_the_limit_is_cut_in_the_middle_and_counted() -> None:
    made = history(1000)
    made.add_input([Message("system", "rules"), Message("user", long("task", 5000))])
    prompt = made.prompt(100)
    assert prompt.tokens <= 900
    assert prompt.dropped_characters > 0.7 * len(long("task", 5000))
    assert contents(prompt)[1].startswith("task 0\n") and "characters cut" in contents(prompt)[1]
    assert made.prompt(100) == prompt  # cut once, not again and again


def test_a_huge_tool_result_is_cut_rather_than_the_turn_lost() -> None:
    made = history(1000)
    made.add_input([Message("user", "task")])
    made.add_recorded(Message("assistant", "look", (ToolCall("write", {"text": long("w", 3000), "n": "5"}),)))
    made.add_input([Message("tool", long("result", 5000))])
    prompt = made.prompt(100)
    assert prompt.tokens <= 900
    assert [message["role"] for message in told(prompt)] == ["user", "assistant", "tool"]
    arguments = json.loads(told(prompt)[1]["tool_calls"][0]["function"]["arguments"])
    assert arguments["n"] == "5" and "characters cut" in arguments["text"]


def test_tool_results_answer_the_generated_calls_in_order() -> None:
    made = history()
    made.add_input([Message("user", "task")])
    calls = (AnswerCall("id-a", "read", '{"p": 1}'), AnswerCall("", "run", '{"broken'))
    made.add_generated(answer("", *calls))
    made.add_input([Message("tool", "one"), Message("tool", "two"), Message("tool", "three")])
    _, said, *results = told(made.prompt(1))
    assert [result["tool_call_id"] for result in results] == ["id-a", "call_1_1", "call_1_2"]
    assert [call["id"] for call in said["tool_calls"]] == ["id-a", "call_1_1"]
    assert json.loads(said["tool_calls"][1]["function"]["arguments"]) == {"arguments": '{"broken'}


def test_the_servers_own_count_corrects_the_estimate() -> None:
    made, _ = grown(None, 5)
    before = made.tokens
    made.counted(3 * before)
    assert made.tokens == pytest.approx(3 * before, rel=0.01)
    made.counted(before // 2)  # mostly tags in short messages: says nothing of the next long one
    assert made.tokens == before
    made.counted(3 * before)
    made.counted(0)  # a server that doesn't count says nothing
    assert made.tokens == pytest.approx(3 * before, rel=0.01)


def test_a_prompt_that_is_too_long_by_a_few_tokens_is_cut() -> None:
    made = history(1000)
    made.add_input([Message("user", "word\n" * 953)])
    assert made.tokens == 1000 - 10 - MARGIN_TOKENS + 3  # fewer than the note of the cut takes
    assert made.prompt(10).tokens <= 1000 - 10 - MARGIN_TOKENS


def test_a_refusal_that_counts_the_prompt_corrects_the_estimate_at_once() -> None:
    made, _ = grown(None, 5)
    twice = 2 * made.tokens
    made.too_long(twice - 100, 50, twice)
    assert made.tokens == pytest.approx(twice, rel=0.01)
    assert made.prompt(50).tokens <= twice - 150


def test_a_refused_length_shortens_the_next_prompt_with_and_without_a_number() -> None:
    for limit in (None, 700, 100_000):
        made, prompts = grown(None, 10)
        made.add_input([Message("user", "more")])
        before = made.tokens
        for _ in range(6):
            made.too_long(limit, 50)
        assert len(made.prompt(50).messages) < len(prompts[-1].messages) + 2 or limit == 100_000
        assert made.tokens < before or limit == 100_000
