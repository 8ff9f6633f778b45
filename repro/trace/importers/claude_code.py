"""kv-cache-tester traces of Claude Code sessions: lengths, block hashes and think times, no text.

The text is made from the hashes, so equal leading `hash_ids` mean equal leading text. What the
conversation adds after its first prompt is sized by the growth of the recorded prompts, minus the
recorded answer (unrecorded reasoning makes that negative: then the least text is used).

    parent   |0--answer|------ tool gap ------|1--answer|--|2 (rewrites its history)
    sub-agent           |0--answer|1--|2--|                = a session with parent "ID#0"
    rewritten history                                      = a session with parent "ID#1"

A sub-agent's recorded `t` is its end, so its start is `t` minus its duration.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from repro.base.errors import TraceError
from repro.trace.filler import block_text, scaled_span
from repro.trace.format import Message, Session, Turn
from repro.trace.importers.base import Importer, ImportOptions, decode_document, has_keys

EXPECTED = "a kv-cache-tester trace (id, block_size, tool_tokens, system_tokens, requests)"
NEW_TEXT_TOKENS_MIN = 16  # the shortest tool result or question
SCALED_TOKENS_MIN = 4
REWRITE_SLACK_BLOCKS = 2  # the last block of a prompt changes when text is appended to it


class Request(msgspec.Struct, tag_field="type", rename={"input_tokens": "in", "output_tokens": "out"}):
    """One request: `t` seconds after the start of its agent."""

    t: float
    input_tokens: int
    output_tokens: int
    hash_ids: list[int]
    think_time: float | None = None
    api_time: float | None = None
    input_types: list[str] = []


class WholeRequest(Request, tag="n"):
    """A request answered in one piece."""


class StreamedRequest(Request, tag="s"):
    """A request answered as a stream."""


class SubAgent(msgspec.Struct, tag_field="type", tag="subagent"):
    """A nested agent, listed where it ended."""

    t: float
    agent_id: str
    requests: "list[Entry]"
    duration_ms: float = 0.0
    tool_tokens: int = 0
    system_tokens: int = 0


Entry = WholeRequest | StreamedRequest | SubAgent


class Trace(msgspec.Struct):
    """A trace file."""

    id: str
    block_size: int
    requests: list[Entry]
    hash_id_scope: str = "local"
    tool_tokens: int = 0
    system_tokens: int = 0


class _Agent(msgspec.Struct, frozen=True):
    """One agent of the tree, main or nested, and where it hangs."""

    name: str
    entries: Sequence[Entry]
    prefix_tokens: int
    start_s: float
    parent: str | None = None
    gap_s: float = 0.0


class _Writer(msgspec.Struct, frozen=True):
    """Makes text of the right length and identity for one trace file."""

    scope: str
    block_tokens: int
    options: ImportOptions

    def first_prompt(self, request: Request, prefix_tokens: int, tail: str) -> tuple[Message, ...]:
        """Return system and user messages made of the prompt's blocks; `tail` keys the unhashed rest."""
        texts = [
            self._text(f"{self.scope}/{block}", scaled_span(index, self.block_tokens, self.options.scale_tokens))
            for index, block in enumerate(request.hash_ids)
        ]
        system_blocks = min(len(texts), round(prefix_tokens / self.block_tokens))
        unhashed = max(NEW_TEXT_TOKENS_MIN, request.input_tokens - len(texts) * self.block_tokens)
        user = "".join(texts[system_blocks:]) + self.new_text(unhashed, tail)
        system = Message(role="system", content="".join(texts[:system_blocks]))
        return (system, Message(role="user", content=user)) if system.content else (Message("user", user),)

    def new_text(self, tokens: int, key: str) -> str:
        """Return text of `tokens` recorded tokens that nothing else shares."""
        scaled = max(SCALED_TOKENS_MIN, round(tokens * self.options.scale_tokens))
        return self._text(f"{self.scope}/{key}", scaled)

    def answer_tokens(self, request: Request) -> int:
        """Return the scaled length of the recorded answer."""
        return max(1, round(request.output_tokens * self.options.scale_tokens))

    def _text(self, key: str, tokens: int) -> str:
        return block_text(self.options.seed, key, round(tokens * self.options.characters_per_token))


def read(path: Path, options: ImportOptions) -> Iterator[Session]:
    """Yield the main session, then those of its rewritten histories and sub-agents, parents first."""
    trace = decode_document(path, Trace, EXPECTED)
    if trace.block_size < 1:
        raise TraceError(f"{path}: block_size is {trace.block_size}; expected at least 1")
    scope = "global" if trace.hash_id_scope == "global" else trace.id
    writer = _Writer(scope=scope, block_tokens=trace.block_size, options=options)
    main = _Agent(trace.id, trace.requests, trace.tool_tokens + trace.system_tokens, start_s=0.0)
    found = False
    for session in _sessions(main, writer):
        found = True
        yield session
    if not found:
        raise TraceError(f"{path}: no requests; expected {EXPECTED}")


def _sessions(agent: _Agent, writer: _Writer) -> Iterator[Session]:
    """Yield an agent's own sessions, then those of its sub-agents."""
    requests = [entry for entry in agent.entries if not isinstance(entry, SubAgent)]
    places: list[str] = []  # ID#TURN of the turn that each request became
    parts = _split_at_rewrites(requests)
    first = 0
    for number, part in enumerate(parts):
        name = agent.name if number == 0 else f"{agent.name}~{number + 1}"
        parent = agent.parent if number == 0 else places[-1]
        gap_s = agent.gap_s if number == 0 else _gap_s(requests[first - 1], part[0])
        turns = tuple(_turns(part, name, agent.prefix_tokens, gap_s, writer))
        yield Session(id=name, turns=turns, start_s=agent.start_s + part[0].t, parent=parent)
        places += [f"{name}#{turn}" for turn in range(len(part))]
        first += len(part)
    for entry in agent.entries:
        if isinstance(entry, SubAgent) and places:
            yield from _sessions(_nested(entry, agent, requests, places), writer)


def _nested(entry: SubAgent, agent: _Agent, requests: Sequence[Request], places: Sequence[str]) -> _Agent:
    """Return the sub-agent, hung on the last turn of its parent that was sent before it started."""
    start_s = max(0.0, entry.t - entry.duration_ms / 1e3)
    turn = max((index for index, request in enumerate(requests) if request.t <= start_s), default=0)
    answered_s = requests[turn].t + (requests[turn].api_time or 0.0)
    return _Agent(
        name=f"{agent.name}/{entry.agent_id}",
        entries=entry.requests,
        prefix_tokens=entry.tool_tokens + entry.system_tokens,
        start_s=agent.start_s + start_s,
        parent=places[turn],
        gap_s=max(0.0, start_s - answered_s),
    )


def _split_at_rewrites(requests: Sequence[Request]) -> list[list[Request]]:
    """Return runs of requests in which each prompt extends the one before it."""
    parts: list[list[Request]] = []
    for request in requests:
        if parts and _extends(request.hash_ids, parts[-1][-1].hash_ids):
            parts[-1].append(request)
        else:
            parts.append([request])
    return parts


def _extends(blocks: Sequence[int], before: Sequence[int]) -> bool:
    shared = len(before) - REWRITE_SLACK_BLOCKS
    return shared <= 0 or blocks[:shared] == before[:shared]


def _turns(part: Sequence[Request], name: str, prefix_tokens: int, gap_s: float, writer: _Writer) -> Iterator[Turn]:
    first = part[0]
    messages = writer.first_prompt(first, prefix_tokens, f"{name}#0")
    yield Turn(messages=messages, max_tokens=writer.answer_tokens(first), gap_s=gap_s)
    for number, (before, request) in enumerate(zip(part, part[1:], strict=False), start=1):
        grown = request.input_tokens - before.input_tokens - before.output_tokens
        text = writer.new_text(max(NEW_TEXT_TOKENS_MIN, grown), f"{name}#{number}")
        role: Any = "tool" if "tool_result" in request.input_types else "user"
        yield Turn(
            messages=(Message(role=role, content=text),),
            max_tokens=writer.answer_tokens(request),
            gap_s=_gap_s(before, request),
        )


def _gap_s(before: Request, request: Request) -> float:
    """Return the time between an answer and the next request; an unknown answer time counts as none."""
    gap_s = request.t - before.t - (before.api_time or 0.0)
    return max(0.0, gap_s if request.think_time is None else min(gap_s, request.think_time))


def _matches(value: Any) -> bool:
    return has_keys(value, "requests", "block_size")


IMPORTER = Importer(name="claude-code", matches=_matches, read=read, scales=True)
