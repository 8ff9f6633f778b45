"""Importers on small hand-made files: what each format means, and its errors."""

import json
from pathlib import Path
from typing import Any

import pytest

from repro.base.errors import TraceError
from repro.trace.format import Session, ToolCall
from repro.trace.load import load_traces


def load(path: Path, content: object, *, lines: bool = False, **options: Any) -> list[Session]:
    if lines:
        assert isinstance(content, list)
        path.write_text("".join(json.dumps(value) + "\n" for value in content))
    else:
        path.write_text(json.dumps(content, indent=1))
    return load_traces([path], **options)


def call(name: str, arguments: str) -> dict[str, Any]:
    return {"id": "c1", "type": "function", "function": {"name": name, "arguments": arguments}}


def prompt(session: Session, turn: int = 0) -> str:
    return "".join(message.content for message in session.turns[turn].messages)


def common(first: str, second: str) -> int:
    return next((at for at, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]), len(first))


def stamped(role: str, content: str, seconds: float, *calls: dict[str, Any]) -> dict[str, Any]:
    return {"role": role, "content": content, "tool_calls": list(calls), "extra": {"timestamp": seconds}}


MINI = {
    "trajectory_format": "mini-swe-agent-1.1",
    "instance_id": "x__y-1",
    "info": {},
    "messages": [
        {"role": "system", "content": "sys"},
        {"role": "user", "content": "task"},
        stamped("assistant", "one", 100.0, call("bash", '{"command": "ls"}')),
        stamped("tool", "a.py", 102.5),
        stamped("assistant", "two", 110.0, call("bash", '{"command": "true", "timeout": 5}')),
        stamped("exit", "diff", 111.0),
    ],
}


def test_mini_swe_agent_keeps_calls_gaps_and_drops_the_exit(tmp_path: Path) -> None:
    (session,) = load(tmp_path / "a.traj.json", MINI)
    assert session.id == "x__y-1"
    assert [[message.role for message in turn.messages] for turn in session.turns] == [
        ["system", "user"],
        ["tool"],
    ]
    assert [turn.gap_s for turn in session.turns] == [0.0, 2.5]
    replies = [turn.reply for turn in session.turns]
    assert replies[0] is not None and replies[0].tool_calls == (ToolCall("bash", {"command": "ls"}),)
    assert replies[1] is not None and replies[1].tool_calls[0].arguments["timeout"] == "5"
    assert session.tools[0]["function"]["parameters"]["properties"] == {
        "command": {"type": "string"},
        "timeout": {"type": "string"},
    }


def test_swe_agent_takes_run_times_from_its_steps_after_the_demonstration(tmp_path: Path) -> None:
    history = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "demo"},
        {"role": "assistant", "content": "demo answer"},
        {"role": "user", "content": [{"type": "text", "text": "the issue"}]},
        {"role": "assistant", "content": "look", "tool_calls": None},
        {"role": "user", "content": "observation"},
        {"role": "assistant", "content": "done"},
        {"role": "tool", "content": "never sent"},
    ]
    steps = [{"execution_time": 0.5, "action": "ls"}, {"execution_time": 0.25}]
    (session,) = load(tmp_path / "m-1.traj", {"history": history, "trajectory": steps, "info": {}})
    assert session.id == "m-1"
    assert [turn.gap_s for turn in session.turns] == [0.0, 0.0, 0.5]
    assert session.turns[1].messages[0].content == "the issue"
    assert len(session.turns) == 3 and session.tools == ()


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_message_list_ending_with_the_user_has_a_turn_without_answer(tmp_path: Path, wrapped: bool) -> None:
    messages = [{"role": "developer", "content": "s"}, {"role": "user", "content": "q"}]
    (session,) = load(
        tmp_path / "chat.json",
        {"messages": messages, "tools": [{"type": "function"}]} if wrapped else messages,
    )
    assert session.id == "chat"
    assert session.turns[0].reply is None and session.turns[0].messages[0].role == "system"
    assert session.tools == (({"type": "function"},) if wrapped else ())


def test_message_lists_one_a_line_are_sessions_named_by_line(tmp_path: Path) -> None:
    user = {"role": "user", "content": "q"}
    answer = {"role": "assistant", "content": "a"}
    sessions = load(
        tmp_path / "chats.jsonl",
        [{"messages": [user, answer, answer]}, {"messages": [user], "id": "mine"}],
        lines=True,
    )
    assert [session.id for session in sessions] == ["chats-1", "mine"]
    assert sessions[0].turns[0].reply is not None and sessions[0].turns[0].reply.content == "a\na"


def test_broken_call_arguments_are_kept_as_the_model_wrote_them(tmp_path: Path) -> None:
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "tool_calls": [call("run", '{"a": ')]},
    ]
    (session,) = load(tmp_path / "chat.json", messages)
    assert session.turns[0].reply is not None
    assert session.turns[0].reply.tool_calls == (ToolCall("run", {"arguments": '{"a": '}),)


def mooncake(ids: list[int], length: int, timestamp: float = 0) -> dict[str, Any]:
    return {"timestamp": timestamp, "input_length": length, "output_length": 100, "hash_ids": ids}


@pytest.mark.parametrize("scale", [1.0, 0.1, 0.013])
def test_mooncake_requests_share_exactly_the_text_of_their_shared_blocks(tmp_path: Path, scale: float) -> None:
    requests = [mooncake([0, 1, 2], 1500), mooncake([0, 1, 7], 1500, 2500), mooncake([0, 1], 1000, 9000)]
    first, second, third = load(tmp_path / "m.jsonl", requests, lines=True, scale_tokens=scale)
    two_blocks = round(2 * 512 * scale) * 4
    assert two_blocks <= common(prompt(first), prompt(second)) <= two_blocks + 40
    assert common(prompt(first), prompt(third)) >= round(1000 * scale) * 4 - 5
    assert len(prompt(first)) == round(1500 * scale) * 4
    assert (second.start_s, first.turns[0].max_tokens) == (2.5, max(1, round(100 * scale)))
    assert load_traces([tmp_path / "m.jsonl"], scale_tokens=scale)[1] == second


def test_mooncake_text_beyond_the_hashes_is_the_requests_own(tmp_path: Path) -> None:
    first, second = load(tmp_path / "m.jsonl", [mooncake([], 100), mooncake([], 100)], lines=True)
    assert len(prompt(first)) == len(prompt(second)) == 400
    assert common(prompt(first), prompt(second)) < 100


def request(t: float, tokens: int, out: int, blocks: range | list[int], **more: Any) -> dict[str, Any]:
    return {"t": t, "type": "n", "in": tokens, "out": out, "hash_ids": list(blocks), "api_time": 2.0, **more}


def claude(requests: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    trace = {"id": "t1", "block_size": 64, "hash_id_scope": "local", "tool_tokens": 192, "system_tokens": 64}
    return {**trace, "requests": requests, **more}


def test_claude_code_turns_grow_by_what_the_prompts_grew(tmp_path: Path) -> None:
    requests = [
        request(0, 660, 50, range(10), think_time=0.0),
        request(7, 1010, 60, range(15), think_time=5.0, input_types=["tool_result"]),
        request(20, 1040, 10, range(16), think_time=99.0, input_types=["text"]),
    ]
    (session,) = load(tmp_path / "t.json", claude(requests))
    assert [[message.role for message in turn.messages] for turn in session.turns] == [
        ["system", "user"],
        ["tool"],
        ["user"],
    ]
    assert [turn.gap_s for turn in session.turns] == [0.0, 5.0, 11.0]
    assert [turn.max_tokens for turn in session.turns] == [50, 60, 10]
    assert len(session.turns[0].messages[0].content) == 256 * 4
    assert [len(prompt(session, turn)) for turn in range(3)] == [660 * 4, 300 * 4, 16 * 4]


def test_claude_code_rewritten_history_becomes_a_follow_on_session_with_the_shared_text(
    tmp_path: Path,
) -> None:
    requests = [
        request(0, 640, 50, range(10)),
        request(9, 960, 50, range(15)),
        request(30, 700, 50, [*range(6), 90, 91, 92, 93], think_time=3.0),
        request(40, 900, 50, [*range(6), 90, 91, 92, 93, 94, 95, 96, 97]),
    ]
    first, second = load(tmp_path / "t.json", claude(requests))
    assert (second.id, second.parent, second.start_s) == ("t1~2", "t1#1", 30.0)
    assert [len(first.turns), len(second.turns)] == [2, 2]
    assert second.turns[0].gap_s == 3.0
    shared = common(prompt(first), prompt(second))
    assert 6 * 64 * 4 <= shared <= 6 * 64 * 4 + 20


def test_claude_code_sub_agents_start_at_the_turn_that_called_them(tmp_path: Path) -> None:
    def nested(name: str, end: float, first: int) -> dict[str, Any]:
        inner = [
            request(0, 640, 10, [*range(500, 506), first]),
            request(4, 700, 10, [*range(500, 506), first, first + 1]),
        ]
        return {
            "t": end,
            "type": "subagent",
            "agent_id": name,
            "duration_ms": 9000,
            "requests": inner,
            "tool_tokens": 128,
        }

    requests = [
        request(0, 640, 50, range(10)),
        nested("a1", 12.5, 600),
        nested("a2", 40.0, 700),
        request(25, 960, 50, range(15)),
    ]
    main, first, second = load(tmp_path / "t.json", claude(requests))
    assert (first.id, first.parent, first.start_s) == ("t1/a1", "t1#0", 3.5)
    assert (second.id, second.parent, second.start_s) == ("t1/a2", "t1#1", 31.0)
    assert (first.turns[0].gap_s, second.turns[0].gap_s) == (1.5, 4.0)
    assert common(prompt(first), prompt(second)) >= 6 * 64 * 4
    assert common(prompt(main), prompt(first)) < 40


def test_local_hash_ids_share_nothing_across_files_and_global_ones_do(tmp_path: Path) -> None:
    for name, scope in (("a", "local"), ("b", "local"), ("c", "global"), ("d", "global")):
        trace = claude([request(0, 640, 50, range(10))], id=name, hash_id_scope=scope)
        (tmp_path / f"{name}.json").write_text(json.dumps(trace))
    local_a, local_b, global_c, global_d = load_traces([tmp_path])
    assert common(prompt(local_a), prompt(local_b)) < 40
    assert common(prompt(global_c), prompt(global_d)) >= 640 * 4


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"history": [{"content": "x"}], "trajectory": []}, "missing required field `role`"),
        ({**MINI, "messages": [{"role": 3}]}, "Expected `str`, got `int`"),
        (claude([{"t": 0, "type": "n", "out": 1, "hash_ids": []}]), "missing required field `in`"),
        (claude([{"t": 0, "type": "zzz"}]), "Invalid value 'zzz'"),
        (claude([]), "no requests"),
        (claude([request(0, 1, 1, [])], block_size=0), "block_size is 0"),
        ([{"role": "robot", "content": "x"}], "message 0 has role 'robot'"),
        ([{"role": "assistant", "content": "x"}], "no message of a user or tool"),
        ({"some": 1, "thing": 2}, "keys ['some', 'thing']"),
        (17, "begins with a int"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_named_with_what_was_expected(tmp_path: Path, content: object, said: str) -> None:
    with pytest.raises(TraceError) as caught:
        load(tmp_path / "bad.json", content)
    assert str(tmp_path / "bad.json") in str(caught.value) and said in str(caught.value)


def test_a_wrong_mooncake_line_is_named(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"m\.jsonl:2: .*missing required field `output_length`"):
        load(
            tmp_path / "m.jsonl",
            [mooncake([1], 5), {"timestamp": 1, "input_length": 3, "hash_ids": []}],
            lines=True,
        )
