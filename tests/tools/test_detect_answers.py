"""`repro detect FILE...`: each form of saved answers is read, loops in them are found, and what is wrong is said."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner, Result

import repro.tools.saved_answers as saved
from repro.cli import app

FINE = "def read(path):\n    with open(path) as file:\n        return file.read()\n"
LOOP = "over and over and " * 40
ASKED = [{"role": "user", "content": "say it"}]


def detect(*arguments: object) -> Result:
    result = CliRunner().invoke(app, ["detect", *map(str, arguments)])
    assert "Traceback" not in result.output
    return result


def told(result: Result) -> dict[str, Any]:
    decoded: dict[str, Any] = msgspec.json.decode(result.stdout)
    return decoded


def batch_output(name: str, text: str) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}}
    body = {"object": "chat.completion", "choices": [choice]}
    return {"id": f"batch_{name}", "custom_id": name, "response": {"status_code": 200, "body": body}, "error": None}


FORMS = {
    "jsonl of ours": lambda text: {"prompt": "say it", "text": text},
    "conversation": lambda text: {"messages": [*ASKED, {"role": "assistant", "content": text}]},
    "prompt beside": lambda text: {"messages": ASKED, "completion": text},
    "chat completion": lambda text: {"choices": [{"message": {"role": "assistant", "content": text}}]},
    "text completion": lambda text: {"id": "cmpl-1", "choices": [{"text": text}]},
    "batch output": lambda text: batch_output("a", text),
    "sglang": lambda text: {"text": text, "output_ids": [1], "meta_info": {"output_token_logprobs": [[-0.1, 1, None]]}},
    "tool call": lambda text: {
        "choices": [{"message": {"content": None, "tool_calls": [{"function": {"name": "f", "arguments": text}}]}}]
    },
    "parts": lambda text: {"messages": [{"role": "assistant", "content": [{"type": "text", "text": text}]}]},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("text", "code"), [(FINE, 0), (LOOP, 1)])
def test_each_form_is_read_and_only_a_loop_convicts(form: str, text: str, code: int, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps(FORMS[form](FINE)) + "\n\n" + json.dumps(FORMS[form](text)) + "\n")
    result = detect(path, "--json")
    assert result.exit_code == code, result.output
    assert told(result)["answers"] == 2 and told(result)["detectors"]["repetition"] == code
    assert [each["where"] for each in told(result)["findings"]] == [f"{path}:3"] * code


def test_plain_text_and_whole_json_are_read_too(tmp_path: Path) -> None:
    text, document = tmp_path / "a.txt", tmp_path / "b.json"
    text.write_text(LOOP)
    document.write_text(json.dumps([{"answer": FINE}, {"answer": LOOP}], indent=2))
    result = detect(text, document, "--json")
    assert (told(result)["answers"], told(result)["detectors"]["repetition"]) == (3, 2)
    assert [each["where"] for each in told(result)["findings"]] == [str(text), f"{document}:[2]"]


def test_what_the_prompt_repeats_is_no_loop_and_batch_input_brings_the_prompt(tmp_path: Path) -> None:
    output, batch = tmp_path / "output.jsonl", tmp_path / "input.jsonl"
    output.write_text(json.dumps(batch_output("a", LOOP)) + "\n")
    body = {"messages": [{"role": "user", "content": f"repeat this: {LOOP}"}]}
    batch.write_text(json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}))
    assert detect(output).exit_code == 1
    result = detect(output, batch, "--json")
    assert (result.exit_code, told(result)["with_prompt"]) == (0, 1)


def test_requests_of_a_batch_that_failed_are_counted_as_unanswered(tmp_path: Path) -> None:
    path = tmp_path / "output.jsonl"
    lines = [batch_output("a", FINE), {"custom_id": "b", "response": None, "error": {"message": "expired"}}]
    lines += [{"custom_id": "c", "response": {"status_code": 400, "body": {"error": {}}}}, batch_output("d", "")]
    path.write_text("\n".join(map(json.dumps, lines)))
    result = detect(path, "--json")
    assert (result.exit_code, told(result)["answers"], told(result)["unanswered"]) == (0, 1, 3)


def test_another_sessions_nonce_is_a_leak_and_ones_own_is_not(tmp_path: Path) -> None:
    nonces = {"a": "0123456789abcdef", "b": "fedcba9876543210"}
    path = tmp_path / "answers.jsonl"
    lines = [
        {"session": session, "nonce": nonce, "prompt": "hi", "text": f"ticket {nonce}"}
        for session, nonce in nonces.items()
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    assert detect(path, "--json").exit_code == 0
    lines[0]["text"] = f"ticket {nonces['b']}"
    path.write_text("\n".join(map(json.dumps, lines)))
    result = detect(path, "--json")
    assert result.exit_code == 1 and told(result)["detectors"]["cross_prompt_leak"] == 1


def test_redacted_findings_hold_no_text(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps({"text": LOOP}))
    assert "er and ov" in detect(path, "--json").stdout
    result = detect(path, "--json", "--redact")
    assert result.exit_code == 1 and "er and ov" not in result.stdout


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_file_proves_nothing(content: str, tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.txt"):
        (tmp_path / name).write_text(content)
        result = detect(tmp_path / name, "--json")
        assert (result.exit_code, told(result)["verdict"]) == (3, "vacuous")


@pytest.mark.parametrize(
    ("name", "content", "wrong"),
    [
        ("a.jsonl", b'{"text": "fine"}\n{"text": ', "a.jsonl:2: no JSON"),
        ("a.jsonl", b'{"text": "fine"}\n[1]\n', "a.jsonl:2: list instead of an object; expected an answer in one of"),
        ("a.jsonl", b'{"question": "x"}\n', "a.jsonl:1: no answer among question; expected"),
        ("a.json", b"{", "a.json: no JSON"),
        ("a.txt", b"\xff\xfe\x00binary", "a.txt: neither JSON nor UTF-8 text (byte 0xff at 0)"),
        ("a.jsonl", b'{"choices": []}', "a.jsonl:1: no answer among choices"),
    ],
)
def test_a_wrong_file_is_said_with_its_line(name: str, content: bytes, wrong: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    result = detect(path, "--json")
    assert result.exit_code == 2 and wrong in told(result)["error"]


def test_a_file_that_is_too_large_is_said_before_it_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saved, "LINE_BYTES_MAX", 2**20)
    monkeypatch.setattr(saved, "DOCUMENT_BYTES_MAX", 2**20)
    lines, text = tmp_path / "a.jsonl", tmp_path / "a.txt"
    lines.write_bytes(b'{"text": "' + b"x" * 2**20 + b'"}\n')
    text.write_bytes(b"word " * 2**19)
    assert "a.jsonl:1: the line is longer than 1 MiB" in detect(lines).stderr
    result = detect(text)
    assert result.exit_code == 2 and "more than 1 MiB; write its answers as JSON Lines" in result.stderr
    monkeypatch.setattr(saved, "TEXT_CHARS_MAX", 100)
    lines.write_text(json.dumps({"text": LOOP}))
    assert "judge the files in parts" in detect(lines).stderr


def test_a_missing_file_both_kinds_and_none_are_usage_errors(tmp_path: Path) -> None:
    assert detect(tmp_path / "none.jsonl").exit_code == 2
    assert detect().exit_code == 2
    (tmp_path / "a.txt").write_text(FINE)
    assert detect(tmp_path / "a.txt", "--events", tmp_path / "a.txt").exit_code == 2
