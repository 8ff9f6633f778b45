"""Reads saved answers, with their prompts where the file has them, in many forms:

    plain text       the whole file is one answer
    JSON Lines       an object a line; also one JSON document, an object or a list of them
      an answer      text | answer | completion | response | output | content | generated_text
      its prompt     prompt | input | question | messages (a last message of the assistant is the answer)
      more           id | request | custom_id, logprobs (natural), session and nonce
    OpenAI           chat.completion and text_completion objects, batch output, and batch input for the prompts:
                     lines of both kinds of file belong together by custom_id, in whatever order they come
    SGLang           replies of /generate: text and meta_info

Nothing is guessed: a line that is none of these is refused, with its place and what was expected.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from repro.base.errors import UsageError

LINE_BYTES_MAX = 64 * 2**20  # a chat of a million tokens is below 8 MiB
DOCUMENT_BYTES_MAX = 256 * 2**20  # plain text and a JSON document are held whole
TEXT_CHARS_MAX = 2**30  # all answers and prompts together are held
EXCERPT_BYTES = 80

ANSWER_KEYS = ("text", "answer", "completion", "response", "output", "content", "generated_text")
PROMPT_KEYS = ("prompt", "input", "question")
ID_KEYS = ("custom_id", "request", "id")
EXPECTED = (
    f"expected an answer in one of {', '.join(ANSWER_KEYS)}, a conversation in messages, an OpenAI reply, or a line of "
    "an OpenAI batch"
)


class Saved(msgspec.Struct, frozen=True):
    """One answer as it was found. `where` is file:line; text files have no line."""

    where: str
    text: str
    prompt: str = ""
    id: str = ""
    logprobs: tuple[float, ...] = ()
    session: str = ""
    nonce: str = ""


class Answers(msgspec.Struct):
    """All answers of some files, and the counts of their other lines."""

    saved: list[Saved] = []
    unanswered: int = 0  # lines without an answer: errors of a batch, empty answers
    prompts: dict[str, str] = {}  # custom_id -> prompt, from batch input
    characters: int = 0


def read_answers(paths: Sequence[Path]) -> Answers:
    """Return the answers in these files. Raises UsageError with file and line for what is none."""
    answers = Answers()
    for path in paths:
        _read_file(path, answers)
    answers.saved = [_with_prompt(each, answers.prompts) for each in answers.saved]
    return answers


def _with_prompt(saved: Saved, prompts: Mapping[str, str]) -> Saved:
    known = prompts.get(saved.id)
    return msgspec.structs.replace(saved, prompt=known) if known is not None and not saved.prompt else saved


def _read_file(path: Path, answers: Answers) -> None:
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file; give files of answers")
    try:
        with path.open("rb") as file:
            if _is_lines(path, file):
                for number, line in _lines(path, file):
                    _take(_decoded(line, f"{path}:{number}"), f"{path}:{number}", answers)
            else:
                _read_document(path, file, answers)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error


def _is_lines(path: Path, file: BinaryIO) -> bool:
    """Return whether a file holds a JSON object in each line; leaves it at its start."""
    first = b""
    while not first and (line := file.readline(LINE_BYTES_MAX)):
        first = line.strip()
    file.seek(0)
    if path.suffix == ".jsonl":
        return True
    try:
        return isinstance(msgspec.json.decode(first), dict)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False


def _lines(path: Path, file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not blank, with their numbers from 1 on."""
    number = 0
    while line := file.readline(LINE_BYTES_MAX + 1):
        number += 1
        if len(line) > LINE_BYTES_MAX:
            raise UsageError(f"{path}:{number}: the line is longer than {LINE_BYTES_MAX // 2**20} MiB; split it")
        if line.strip():
            yield number, line


def _read_document(path: Path, file: BinaryIO, answers: Answers) -> None:
    raw = file.read(DOCUMENT_BYTES_MAX + 1)
    if len(raw) > DOCUMENT_BYTES_MAX:
        most = DOCUMENT_BYTES_MAX // 2**20
        raise UsageError(f"{path}: a text or document of more than {most} MiB; write its answers as JSON Lines")
    if path.suffix == ".json":
        document = _decoded(raw, str(path))
        items = document if isinstance(document, list) else [document]
        for number, item in enumerate(items, 1):
            _take(item, f"{path}:[{number}]", answers)
        return
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        what = f"byte 0x{raw[error.start]:02x} at {error.start:,}"
        raise UsageError(f"{path}: neither JSON nor UTF-8 text ({what}); give text, JSON Lines or JSON") from error
    if text.strip():
        answers.saved.append(Saved(str(path), text))


def _decoded(raw: bytes, where: str) -> Any:
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        excerpt = raw[:EXCERPT_BYTES].decode("utf-8", "backslashreplace").strip()
        raise UsageError(f"{where}: no JSON ({error}): {excerpt}") from error


def _take(item: Any, where: str, answers: Answers) -> None:
    """Add what one object holds."""
    if not isinstance(item, dict):
        raise UsageError(f"{where}: {type(item).__name__} instead of an object; {EXPECTED}")
    if isinstance(item.get("body"), dict) and "custom_id" in item and "response" not in item:
        prompt = answers.prompts[str(item["custom_id"])] = _prompt_of(item["body"])  # a line of batch input
        _count(answers, len(prompt), where)
        return
    name = next((str(item[key]) for key in ID_KEYS if isinstance(item.get(key), str | int)), "")
    reply: Any = item
    if "response" in item and not isinstance(item["response"], str):  # a line of batch output
        response = item["response"] or {}
        reply = response.get("body") if isinstance(response, dict) else None
        if not isinstance(reply, dict) or "choices" not in reply:
            answers.unanswered += 1
            return
    found = list(_answers_in(reply, item))
    if not found:
        raise UsageError(f"{where}: no answer among {', '.join(sorted(item)) or 'no keys'}; {EXPECTED}")
    for text, logprobs in found:
        if not text:
            answers.unanswered += 1
            continue
        session, nonce = (value if isinstance(value := item.get(key), str) else "" for key in ("session", "nonce"))
        prompt = _prompt_of(item)
        _count(answers, len(text) + len(prompt), where)
        answers.saved.append(Saved(where, text, prompt, name, logprobs, session, nonce))


def _count(answers: Answers, characters: int, where: str) -> None:
    """Raise UsageError when there is more text than can be held at once."""
    answers.characters += characters
    if answers.characters > TEXT_CHARS_MAX:
        raise UsageError(f"{where}: more than {TEXT_CHARS_MAX:,} characters so far; judge the files in parts")


def _answers_in(reply: dict[str, Any], item: dict[str, Any]) -> Iterator[tuple[str, tuple[float, ...]]]:
    """Yield the answers of one object with their log-probabilities; "" for an answer that is there and empty."""
    choices = reply.get("choices")
    if isinstance(choices, list):
        for choice in choices:
            if isinstance(choice, dict):
                message = choice.get("message")
                text = _message_text(message) if isinstance(message, dict) else str(choice.get("text") or "")
                yield text, _logprobs(choice.get("logprobs"))
        return
    for key in ANSWER_KEYS:
        if isinstance(item.get(key), str):
            yield item[key], _logprobs(item.get("logprobs") or item.get("meta_info"))
            return
    messages = item.get("messages")
    if isinstance(messages, list) and messages and isinstance(messages[-1], dict):
        last = messages[-1]
        if last.get("role") == "assistant":
            yield _message_text(last), ()


def _message_text(message: dict[str, Any]) -> str:
    """Return a message as one text: reasoning, content, and calls with their arguments."""
    texts = [message.get("reasoning_content"), _content(message.get("content"))]
    for call in message.get("tool_calls") or ():
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict):
            texts.append(f"\n[call {function.get('name')}] {function.get('arguments')}")
    return "".join(text for text in texts if isinstance(text, str))


def _content(content: Any) -> str:
    if isinstance(content, list):  # parts
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _prompt_of(item: dict[str, Any]) -> str:
    """Return the texts that an answer may repeat: the conversation without the assistant's last message."""
    messages = item.get("messages")
    if isinstance(messages, list):
        history = [message for message in messages if isinstance(message, dict)]
        if history and history[-1].get("role") == "assistant" and not any(key in item for key in ANSWER_KEYS):
            history = history[:-1]
        return "\n".join(map(_message_text, history))
    return next((str(item[key]) for key in PROMPT_KEYS if isinstance(item.get(key), str)), "")


def _logprobs(tokens: Any) -> tuple[float, ...]:
    """Return the log-probabilities of an answer in any of the forms that servers have; () for none."""
    if isinstance(tokens, dict):
        entries = tokens.get("content") or tokens.get("token_logprobs") or tokens.get("output_token_logprobs") or ()
    else:
        entries = tokens if isinstance(tokens, list) else ()
    values = []
    for entry in entries:
        value = (
            entry.get("logprob")
            if isinstance(entry, dict)
            else entry[0]
            if isinstance(entry, list) and entry
            else entry
        )
        if isinstance(value, int | float):
            values.append(float(value))
    return tuple(values)
