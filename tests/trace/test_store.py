"""Session files: what is written is read back, and what is wrong is named with its line."""

from pathlib import Path

import msgspec
import pytest

from repro.base.errors import TraceError
from repro.trace import store
from repro.trace.format import Message, Session, ToolCall, Turn
from repro.trace.store import parent_turn, read_sessions, write_sessions

GOOD_LINE = '{"id":"a","turns":[{"messages":[{"role":"user","content":"hi"}]}]}'


def session(name: str = "a", **changes: object) -> Session:
    turn = Turn(
        messages=(Message("system", "s"), Message("user", "fix é \u2028 \0 it")),
        reply=Message("assistant", "ok", (ToolCall("run", {"command": "ls"}),)),
        gap_s=0.25,
        max_tokens=7,
        abort_after_tokens=3,
    )
    made = Session(id=name, turns=(turn,), tools=({"type": "function"},), nonce="n")
    return msgspec.structs.replace(made, **changes)


def error_of(path: Path, text: str | bytes) -> str:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(TraceError) as caught:
        list(read_sessions(path))
    return str(caught.value)


def test_sessions_survive_the_file(tmp_path: Path) -> None:
    sessions = [session("a"), session("b", parent="a#0", start_s=1.5)]
    assert write_sessions(tmp_path / "new" / "s.jsonl", sessions) == 2
    assert list(read_sessions(tmp_path / "new" / "s.jsonl")) == sessions


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    write_sessions(path, [session("a")])
    with pytest.raises(TraceError, match="no turns"):
        write_sessions(path, [session("b"), session("c", turns=())])
    assert [each.id for each in read_sessions(path)] == ["a"]


def test_blank_lines_are_skipped_and_still_counted(tmp_path: Path) -> None:
    text = error_of(tmp_path / "s.jsonl", f"\n{GOOD_LINE}\n\n{{bad\n")
    assert f"{tmp_path / 's.jsonl'}:4:" in text


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"id":"a"}', "missing required field `turns`"),
        ('{"id":7,"turns":[]}', "Expected `str`, got `int` - at `$.id`"),
        ('{"id":"a","turns":[]}', "no turns"),
        ('{"id":"","turns":[{"messages":[{"role":"user"}]}]}', "id is empty"),
        ('{"id":"a","turns":[{"messages":[]}]}', "turn 0: no messages"),
        ('{"id":"a","turns":[{"mesages":[]}]}', "nearest known field: 'messages'"),
        ('{"id":"a","turns":[{"messages":[{"role":"robot"}]}]}', "Invalid enum value 'robot'"),
        ('{"id":"a","turns":[{"messages":[{"role":"user"}],"gap_s":-1}]}', "gap_s is -1"),
        ('{"id":"a","turns":[{"messages":[{"role":"user"}],"max_tokens":0}]}', "max_tokens is 0"),
        (
            '{"id":"a","turns":[{"messages":[{"role":"user"}],"abort_after_tokens":-1}]}',
            "abort_after_tokens is -1",
        ),
        (
            '{"id":"a","turns":[{"messages":[{"role":"user"}],"reply":{"role":"user"}}]}',
            "reply's role is 'user'",
        ),
        ('{"id":"a","start_s":-2,"turns":[{"messages":[{"role":"user"}]}]}', "start_s is -2"),
        ("[1, 2]", "Expected `object`, got `array`"),
        ('{"id":"a",', "truncated"),
    ],
)
def test_a_bad_line_is_named_with_file_line_and_reason(tmp_path: Path, line: str, said: str) -> None:
    text = error_of(tmp_path / "s.jsonl", f"{GOOD_LINE}\n{line}\n")
    assert text.startswith(f"{tmp_path / 's.jsonl'}:2: ")
    assert said in text


def test_bytes_that_are_no_utf8_are_an_error_of_the_line(tmp_path: Path) -> None:
    assert "s.jsonl:1:" in error_of(tmp_path / "s.jsonl", GOOD_LINE.encode().replace(b"hi", b"\xff\xfe"))


def test_json_too_deep_to_read_is_an_error_of_the_line(tmp_path: Path) -> None:
    assert "s.jsonl:1:" in error_of(tmp_path / "s.jsonl", '{"tools":' + "[" * 200_000)


def test_empty_and_missing_files_and_folders_say_so(tmp_path: Path) -> None:
    assert "is empty" in error_of(tmp_path / "s.jsonl", " \n\n")
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(TraceError, match="cannot be read"):
            list(read_sessions(path))


def test_a_line_without_end_is_refused_instead_of_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "LINE_BYTES_MAX", 1000)
    text = error_of(tmp_path / "s.jsonl", f"{GOOD_LINE}\n" + "x" * 2000)
    assert "s.jsonl:2: the line is longer than 1000 bytes" in text


@pytest.mark.parametrize(
    ("parent", "place"),
    [(None, None), ("a", ("a", 0)), ("a#3", ("a", 3)), ("a#b", ("a#b", 0)), ("a#b#2", ("a#b", 2))],
)
def test_a_parent_names_a_session_and_maybe_a_turn(parent: str | None, place: tuple[str, int] | None) -> None:
    assert parent_turn(session(parent=parent)) == place
