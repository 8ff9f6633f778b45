"""Chat messages to prompt tokens. `toolcalls` reads what the model writes in this form.

The form is GLM-5's with thinking off (`checkpoint/chat_template.jinja`): an assistant turn opens with
`<|assistant|></think>` and has no end token of its own, the model ends it by naming the next role
(`<|observation|>` after a tool call, `<|user|>` after an answer). Unlike GLM's own template, content is
never stripped: an answer may begin with indentation.

Messages are plain OpenAI dicts. Text in them that spells a special token stays text: `ChatEncoder`
takes control tokens from the template alone.
"""

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Any

from jinja2 import Template
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

ChatMessage = Mapping[str, Any]
Tools = Sequence[Mapping[str, Any]]

ROLES = ("system", "developer", "user", "assistant", "tool")

# One process sees many sessions of many lines; the cache makes a growing history cheap to encode again.
CACHED_LINES_MAX = 200_000

# Every character that can begin a special token is followed by this mark while the template runs, so
# that no text of a message can be taken for one. A private-use character, itself marked in the same way.
MARK = "\ue000"
_MARKABLE = re.compile(f"([<\\[{MARK}])")
_MARKED = re.compile(f"([<\\[{MARK}]){MARK}")

_LINE = re.compile("[^\n]*\n|[^\n]+")


class ChatError(ValueError):
    """The messages can't be rendered; the text says which one and why."""


def render(messages: Sequence[ChatMessage], tools: Tools = (), add_generation_prompt: bool = True) -> str:
    """Return the prompt text. Raises ChatError for a message that has no place in the template."""
    return _rendered(_checked(messages), list(tools), add_generation_prompt)


class ChatEncoder:
    """Messages to token ids, line by line, with control tokens from the template alone.

    The tokenizer splits after every newline before it merges, so the ids of a text are the ids of its
    lines one after the other; lines are cached.
    """

    def __init__(self, tokenizer_json: str) -> None:
        """Read a tokenizer.json. The instance is the encoder's own: it changes how specials are read."""
        self._tokenizer = Tokenizer.from_str(tokenizer_json)
        self._tokenizer.encode_special_tokens = True
        added = self._tokenizer.get_added_tokens_decoder()
        self._special_ids: dict[str, int] = {token.content: id for id, token in added.items() if token.special}
        names = sorted(self._special_ids, key=len, reverse=True)
        self._split = re.compile("(" + "|".join(map(re.escape, names)) + ")")
        self._line_ids = lru_cache(maxsize=CACHED_LINES_MAX)(self._encode_line)

    def encode_chat(
        self, messages: Sequence[ChatMessage], tools: Tools = (), add_generation_prompt: bool = True
    ) -> list[int]:
        """Return the prompt's token ids."""
        # Marked only once checked: a call's arguments come as JSON text, and marks would break it.
        prompt = _rendered(_marked(_checked(messages)), _marked(list(tools)), add_generation_prompt)
        ids: list[int] = []
        for piece in self._split.split(prompt):
            special = self._special_ids.get(piece)
            if special is None:
                ids.extend(self.encode_text(_MARKED.sub(r"\1", piece)))
            else:
                ids.append(special)
        return ids

    def encode_text(self, text: str) -> list[int]:
        """Return the token ids of text in which nothing is a control token."""
        return [token for line in _LINE.findall(text) for token in self._line_ids(line)]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, control tokens spelled out, as `parse` wants it."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def special_id(self, token: str) -> int:
        """Return the id of a control token. Raises KeyError for any other text."""
        return self._special_ids[token]

    def _encode_line(self, line: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(line, add_special_tokens=False).ids)


def checkpoint_text(name: str) -> str:
    """Return the text of a file of the bundled checkpoint."""
    return (files("repro.serve.model") / "checkpoint" / name).read_text(encoding="utf-8")


@lru_cache(maxsize=1)
def bundled_encoder() -> ChatEncoder:
    """Return the encoder of the bundled checkpoint."""
    return ChatEncoder(checkpoint_text("tokenizer.json"))


def _checked(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    return [_checked_message(index, message) for index, message in enumerate(messages)]


def _checked_message(index: int, message: ChatMessage) -> dict[str, Any]:
    """Return the message as the template wants it: tool-call arguments as a mapping, no None."""
    role = message.get("role")
    if role not in ROLES:
        raise ChatError(f"messages[{index}].role: expected one of {', '.join(ROLES)}; found {role!r}")
    if not isinstance(message.get("content") or "", str | list | tuple):
        raise ChatError(f"messages[{index}].content: expected text or a list of text parts")
    calls = [_checked_call(index, call) for call in message.get("tool_calls") or ()]
    return {"role": role, "content": message.get("content") or "", "tool_calls": calls}


def _checked_call(index: int, call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function", call)
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except json.JSONDecodeError as error:
            raise ChatError(f"messages[{index}].tool_calls: arguments are no JSON: {error}") from error
    if not isinstance(arguments, Mapping) or not isinstance(function.get("name"), str):
        raise ChatError(f"messages[{index}].tool_calls: expected a name and an object of arguments")
    return {"name": function["name"], "arguments": dict(arguments)}


def _marked(value: Any) -> Any:
    """Return a copy of a message or tool with every text in it marked."""
    if isinstance(value, str):
        return _MARKABLE.sub(rf"\1{MARK}", value)
    if isinstance(value, Mapping):
        return {_marked(key): _marked(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_marked(item) for item in value]
    return value


def _to_json(value: Any, ensure_ascii: bool = False) -> str:
    # Jinja's own filter escapes < and > for HTML; a prompt wants plain JSON.
    return json.dumps(value, ensure_ascii=ensure_ascii)


def _rendered(messages: list[dict[str, Any]], tools: list[Any], add_generation_prompt: bool) -> str:
    return _template().render(messages=messages, tools=tools, add_generation_prompt=add_generation_prompt)


@lru_cache(maxsize=1)
def _template() -> Template:
    # The settings under which the hub's chat templates are written.
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = _to_json
    return environment.from_string(checkpoint_text("chat_template.jinja").rstrip("\n"))
