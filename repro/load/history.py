"""A session's history as encoded messages, kept within the model's limit.

    unit 0: system and task | unit 1: answer 0, input 1 | ... | unit n: answer n-1, input n
    kept always              | dropped, oldest first     |      | kept: it is what is asked

An answer goes together with the tool results that follow it, so no result is left without its call.
When the prompt no longer fits, units are dropped down to half the limit: the prefix then stays the
same for many turns, as with agents that compact, instead of shifting at every turn.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from repro.load.answer import Answer, AnswerCall, arguments_of
from repro.trace.format import Message
from repro.trace.scale import cut_middle

TokenCounter = Callable[[str], int]

MESSAGE_TOKENS = 8  # a message's role tags, more than any common template needs
CALL_TOKENS = 16  # a call's tags
MARGIN_TOKENS = 32  # the template's own text around the conversation
RATIO_MAX = 4.0  # a server's count that differs more is not believed
CUT_ROUNDS_MAX = 64
CUT_TOKENS_MIN = 64  # the note of what was cut takes a place, too: a smaller cut would make nothing shorter


def characters_per_four(text: str) -> int:
    """Return about how many tokens a text has, for servers with an unknown tokenizer."""
    return len(text) // 4 + 1


class _Function(msgspec.Struct, frozen=True):
    name: str
    arguments: str


class _Call(msgspec.Struct, frozen=True):
    id: str
    function: _Function
    type: str = "function"


class _WireMessage(msgspec.Struct, frozen=True, omit_defaults=True):
    """A chat message as OpenAI's API wants it."""

    role: str
    content: str | None = None
    tool_calls: tuple[_Call, ...] = ()
    tool_call_id: str = ""


class Prompt(msgspec.Struct, frozen=True):
    """The messages of one request, and what was cut from the session to make it fit."""

    messages: tuple[bytes, ...]
    text: str  # the messages as one text, calls with their arguments: an answer that repeats it is not suspect
    tokens: int  # estimated
    dropped_turns: int
    dropped_characters: int


class _Entry:
    """One message, encoded once."""

    def __init__(self, message: _WireMessage, count: TokenCounter) -> None:
        self.message = message
        self.encoded = msgspec.json.encode(message)
        calls = "\n".join(f"{call.function.name} {call.function.arguments}" for call in message.tool_calls)
        self.text = f"{message.content or ''}\n{calls}\n" if calls else f"{message.content or ''}\n"
        self.characters = len(message.content or "") + len(calls)
        words = count(message.content or "") + (count(calls) if calls else 0)
        self.tokens = words + MESSAGE_TOKENS + CALL_TOKENS * len(message.tool_calls)


class History:
    """Grows by input and answer; `prompt` cuts what doesn't fit, for good."""

    def __init__(self, tools: Sequence[dict[str, Any]], count: TokenCounter, limit_tokens: int | None) -> None:
        self.tools = msgspec.json.encode(tools) if tools else b""
        self._count = count
        self._limit_tokens = limit_tokens
        self._tools_tokens = count(self.tools.decode()) if tools else 0
        self._units: list[list[_Entry]] = []
        self._ratio = 1.0  # the server's count of the last prompt by ours
        self._call_ids: list[str] = []  # the latest answer's, for the tool results that follow
        self._inputs = 0
        self._answered = False  # the last unit begins with an answer and waits for its input
        self._dropped_turns = 0
        self._dropped_characters = 0

    def add_input(self, messages: Sequence[Message]) -> None:
        """Add the new messages of a turn; tool results answer the latest calls in their order."""
        results = 0
        entries = []
        for message in messages:
            call_id = ""
            if message.role == "tool":
                known = results < len(self._call_ids)
                call_id = self._call_ids[results] if known else f"call_{self._inputs}_{results}"
                results += 1
            calls = _recorded_calls(message, self._inputs)
            wire = _WireMessage(message.role, message.content, calls, call_id)
            entries.append(_Entry(wire, self._count))
        self._inputs += 1
        if self._answered:
            self._units[-1] += entries
        else:
            self._units.append(entries)
        self._answered = False

    def add_recorded(self, reply: Message) -> None:
        """Add the trace's answer."""
        self._add_answer(reply.content, _recorded_calls(reply, self._inputs))

    def add_generated(self, answer: Answer) -> None:
        """Add what the model said, its calls as it made them."""
        calls = tuple(_generated_call(call, index, self._inputs) for index, call in enumerate(answer.calls))
        self._add_answer(answer.content, calls)

    def prompt(self, answer_tokens: int) -> Prompt:
        """Return the request's messages, cut so that they and the answer fit the limit."""
        if self._limit_tokens is not None:
            self._fit(self._limit_tokens, self._limit_tokens - answer_tokens - MARGIN_TOKENS)
        return Prompt(
            messages=tuple(entry.encoded for entry in self._entries()),
            text="".join(entry.text for entry in self._entries()),
            tokens=self.tokens,
            dropped_turns=self._dropped_turns,
            dropped_characters=self._dropped_characters,
        )

    @property
    def tokens(self) -> int:
        """Return the prompt's estimated length, corrected by the server's count of the prompt before."""
        return round(self._raw_tokens * self._ratio)

    def counted(self, prompt_tokens: int) -> None:
        """Take the server's count of the latest prompt; only a count above ours changes the estimate.

        Many short messages count for less than we think, and a long tool result after them does not.
        """
        if prompt_tokens > 0:
            self._ratio = min(RATIO_MAX, max(1.0, prompt_tokens / max(1, self._raw_tokens)))

    def too_long(self, limit_tokens: int | None, answer_tokens: int, prompt_tokens: int | None = None) -> None:
        """The server has refused the latest prompt as too long, which it may have counted; the next is shorter."""
        if limit_tokens is not None:
            self._limit_tokens = limit_tokens
        elif self._limit_tokens is None:
            self._limit_tokens = max(1, (self.tokens + answer_tokens) * 3 // 4)
        if prompt_tokens is not None:
            self.counted(prompt_tokens)
        elif self.tokens + answer_tokens + MARGIN_TOKENS <= self._limit_tokens:  # our estimate is too low
            self._ratio = min(RATIO_MAX, self._ratio * 1.3)

    @property
    def _raw_tokens(self) -> int:
        return self._tools_tokens + sum(entry.tokens for entry in self._entries())

    def _entries(self) -> Iterator[_Entry]:
        for unit in self._units:
            yield from unit

    def _add_answer(self, content: str, calls: tuple[_Call, ...]) -> None:
        self._call_ids = [call.id for call in calls]
        self._answered = True
        self._units.append([_Entry(_WireMessage("assistant", content, calls), self._count)])

    def _fit(self, limit_tokens: int, budget_tokens: int) -> None:
        if self.tokens <= budget_tokens:
            return
        while len(self._units) > 2 and self.tokens > limit_tokens // 2:
            dropped = self._units.pop(1)
            self._dropped_turns += 1
            self._dropped_characters += sum(entry.characters for entry in dropped)
        for _ in range(CUT_ROUNDS_MAX):
            over_tokens = self.tokens - budget_tokens
            if over_tokens <= 0 or not self._cut_longest(over_tokens):
                return

    def _cut_longest(self, over_tokens: int) -> bool:
        """Cut the middle out of the longest message; False when nothing is left to cut."""
        unit, index = max(
            ((unit, index) for unit in self._units for index in range(len(unit))),
            key=lambda place: place[0][place[1]].tokens,
        )
        entry = unit[index]
        over_tokens = max(over_tokens, CUT_TOKENS_MIN)
        keep = max(0.0, 1.0 - over_tokens / max(1.0, entry.tokens * self._ratio))
        shorter = _Entry(_cut(entry.message, keep), self._count)
        if shorter.characters >= entry.characters:
            return False
        self._dropped_characters += entry.characters - shorter.characters
        unit[index] = shorter
        return True


def _cut(message: _WireMessage, keep: float) -> _WireMessage:
    calls = tuple(_cut_call(call, keep) for call in message.tool_calls)
    return msgspec.structs.replace(message, content=_cut_text(message.content or "", keep), tool_calls=calls)


def _cut_call(call: _Call, keep: float) -> _Call:
    """Cut the strings among the arguments; they stay a JSON object."""
    arguments = msgspec.json.decode(call.function.arguments)
    cut = {name: _cut_text(value, keep) if isinstance(value, str) else value for name, value in arguments.items()}
    function = _Function(call.function.name, msgspec.json.encode(cut).decode())
    return msgspec.structs.replace(call, function=function)


def _cut_text(text: str, keep: float) -> str:
    return cut_middle(text, int(len(text) * keep))


def _recorded_calls(message: Message, turn: int) -> tuple[_Call, ...]:
    return tuple(
        _Call(f"call_{turn}_{index}", _Function(call.name, msgspec.json.encode(call.arguments).decode()))
        for index, call in enumerate(message.tool_calls)
    )


def _generated_call(call: AnswerCall, index: int, turn: int) -> _Call:
    return _Call(call.id or f"call_{turn}_{index}", _Function(call.name, arguments_of(call)))
