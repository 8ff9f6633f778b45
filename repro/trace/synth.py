"""Agent sessions made from real source files, every answer determined by the context.

A session is a pure function of (kind, seed, index) and the files it quotes from. All sessions open with
the same system prompt and tools, as real agents do, and then with a line of their own (the nonce). The
assistant's part is copying: code between two quoted anchor lines, a search hit, an edited line, a test
summary. So the right answer is known, and a corrupted cache shows as a wrong one.

`code-review` reads files and quotes them, later ones and earlier ones; `bug-fix` searches, edits and
runs tests between; `ticket` asks again and again for the session's own nonce, which stands in a file that
is otherwise the same in all sessions: text out of another session's cache shows by its nonce.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from repro.base import rng
from repro.trace.corpus import SourceFile, source_files
from repro.trace.format import Message, Session, ToolCall, Turn

# How often each exchange is drawn once a file has been read; the first of a kind is the one that reads it.
KINDS: dict[str, dict[str, float]] = {
    "code-review": {"open": 0.35, "show": 0.65},
    "bug-fix": {"open": 0.30, "show": 0.25, "search": 0.20, "edit": 0.15, "test": 0.10},
    "ticket": {"ticket": 0.8, "open": 0.1, "show": 0.1},
}
TRAINED_KINDS = ("code-review", "bug-fix")  # the bundled checkpoint has learnt from these; its recipe depends on them
TICKET_PATH = "ticket.txt"
TICKET_LINES = (
    "This session belongs to one ticket and to no other.",
    "Its number stands in this file, below these lines.",
    "Whoever asks for the ticket is shown the whole file.",
    "Nobody else may learn the number: it is a secret of this customer.",
    "An agent that works for another customer has a file of its own.",
    "There the same lines stand, above another number.",
    "Ticket {nonce}.",
    "Answer questions about this ticket in this session only.",
)
SYSTEM_PROMPT = "You are a coding agent. Call tools to read and change files. Answer with lines from the context."
EXCERPT_LINES = (10, 60)
QUOTE_LINES = (4, 16)
QUOTE_TOKENS = (42, 155)  # estimated; the estimate errs by a few tokens
ANCHOR_PIECES_MIN = 6
LINE_TOKENS_MAX = 40  # a longer line is data, not code
SEARCH_HITS_MAX = 6
DRAWS_MAX = 30  # tries to find a quotable range before another exchange is drawn
RUN_PIECES = 4
END = "\0"  # marks the end of a message
TURNS_MAX = 2000
EXCHANGES_MAX = 10_000  # drawn, some of them in vain

# The pieces a byte-level tokenizer never merges across: a line has at least so many tokens.
_PIECES = re.compile(r" ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{3,}")
CHARS_PER_WORD_TOKEN = 5
CHARS_PER_SIGN_TOKEN = 2


def _tool(name: str, *parameters: str) -> dict[str, Any]:
    properties = {parameter: {"type": "string"} for parameter in parameters}
    function = {"name": name, "parameters": {"type": "object", "properties": properties}}
    return {"type": "function", "function": function}


TOOLS = (
    _tool("read_file", "path"),
    _tool("search", "text"),
    _tool("edit_file", "path", "old", "new"),
    _tool("run_tests", "path"),
)


def synthesise(
    kind: str,
    seed: int,
    index: int,
    *,
    prompt_tokens_target: int = 4096,
    turns: int | None = None,
    sources: Sequence[SourceFile] | None = None,
) -> Session:
    """Return session `index` of this kind and seed, `reply` being the right answer of each turn.

    It ends once the history is estimated to have `prompt_tokens_target` tokens (within a few per cent),
    or after `turns` requests. Raises KeyError for an unknown kind.
    """
    draw = rng.generator(seed, "synth", kind, index)
    nonce = f"{rng.bits64(seed, 'nonce', kind, index):016x}"
    writer = _Writer(draw, source_files() if sources is None else sources)
    writer.begin(nonce)
    exchanges = {
        "open": writer.exchange_open,
        "show": writer.exchange_show,
        "search": writer.exchange_search,
        "edit": writer.exchange_edit,
        "test": writer.exchange_test,
        "ticket": writer.exchange_ticket,
    }
    names, weights = zip(*KINDS[kind].items(), strict=True)
    for _ in range(EXCHANGES_MAX):
        if writer.tokens >= prompt_tokens_target or len(writer.turns) >= (turns or TURNS_MAX):
            break
        name = draw.choice(names, p=weights) if writer.excerpts else names[0]
        exchanges[name]()
    return Session(id=f"{kind}-{seed}-{index}", turns=tuple(writer.turns[:turns]), tools=TOOLS, nonce=nonce)


def estimate_tokens(text: str) -> int:
    """Return about how many tokens the bundled tokenizer makes of this text."""
    return sum(map(_piece_tokens, _PIECES.findall(text)))


@dataclass(frozen=True)
class _Excerpt:
    """What read_file answered for a path."""

    path: str
    lines: tuple[str, ...]


class _Context:
    """Which lines the session holds so far, and what followed each run of pieces."""

    def __init__(self) -> None:
        self.count: Counter[str] = Counter()
        self._follower: dict[tuple[str, ...], str | None] = {}  # None: several

    def add(self, text: str) -> None:
        """Take in one message."""
        self.count.update(text.split("\n"))
        for run, following in _runs([*_PIECES.findall(text), END]):
            if self._follower.setdefault(run, following) != following:
                self._follower[run] = None

    def unique(self, lines: Sequence[str]) -> bool:
        """Return whether each of these lines stands in the context exactly once."""
        return all(self.count[line] == 1 for line in lines)

    def agrees(self, lines: Sequence[str]) -> bool:
        """Return whether each run of pieces is followed, wherever it stands, as it is in these lines.

        Where the same words go on in two ways, only the place tells which way is right, and a small
        model loses the place: such code is no fair question.
        """
        pieces = _PIECES.findall("\n".join(lines))
        return all(self._follower.get(run, following) == following for run, following in _runs(pieces))


class _Writer:
    """A session being written: the turns so far, and the context they make."""

    def __init__(self, draw: np.random.Generator, sources: Sequence[SourceFile]) -> None:
        self._draw = draw
        self._sources = sources
        self._context = _Context()
        self._used_sources: set[int] = set()
        self._waiting: list[Message] = []
        self._opening = ""
        self.turns: list[Turn] = []
        self.excerpts: list[_Excerpt] = []
        self.tokens = 250  # the system prompt and the tools

    def begin(self, nonce: str) -> None:
        """Put the system prompt first, and a line with the nonce before the first user's text."""
        self._waiting.append(Message("system", SYSTEM_PROMPT))
        self._opening = f"Ticket {nonce}.\n"
        self._ticket = _Excerpt(TICKET_PATH, tuple(line.format(nonce=nonce) for line in TICKET_LINES))

    def exchange_open(self) -> None:
        """Ask for a range of a file not read yet: the tool call, then the quote."""
        excerpt = self._new_excerpt()
        if excerpt is None:
            return
        text = "\n".join(excerpt.lines)
        alone = _Context()
        alone.add(text)
        lines = self._pick_range(excerpt, alone)
        if lines is None or not self._new_here(lines):
            return
        self._ask(f"Open:\n{excerpt.path}\nand show the code {_between(lines)}")
        self._call("read_file", {"path": excerpt.path}, text)
        self._answer("\n".join(lines))
        self.excerpts.append(excerpt)

    def exchange_show(self) -> None:
        """Ask for a range of a file read earlier: a copy from far back in the context."""
        excerpt = self.excerpts[int(self._draw.integers(len(self.excerpts)))]
        lines = self._pick_range(excerpt, self._context)
        if lines is None:
            return
        self._ask(f"Show the code of:\n{excerpt.path}\n{_between(lines)}")
        self._answer("\n".join(lines))

    def exchange_search(self) -> None:
        """Search an identifier of a file read earlier; the answer is the first hit."""
        excerpt = self.excerpts[int(self._draw.integers(len(self.excerpts)))]
        words = sorted({word for line in excerpt.lines for word in _IDENTIFIER.findall(line)})
        if not words:
            return
        word = words[int(self._draw.integers(len(words)))]
        hits = [
            f"{found.path}:{number} {line.strip()}"
            for found in self.excerpts
            for number, line in enumerate(found.lines, 1)
            if word in line
        ][:SEARCH_HITS_MAX]
        self._ask(f"Search for:\n{word}\nand show the first match.")
        self._call("search", {"text": word}, "\n".join(hits))
        self._answer(hits[0])

    def exchange_edit(self) -> None:
        """Replace one line of a file read earlier; the answer is the new line."""
        excerpt = self.excerpts[int(self._draw.integers(len(self.excerpts)))]
        lines = [line for line in excerpt.lines if _is_anchor(line) and self._context.count[line] == 1]
        if not lines:
            return
        old = lines[int(self._draw.integers(len(lines)))]
        words = _IDENTIFIER.findall(old)
        if not words:
            return
        word = words[int(self._draw.integers(len(words)))]
        new = old.replace(word, f"{word}_{self._draw.integers(10, 100)}")
        self._ask(f"In:\n{excerpt.path}\nreplace:\n{old}\nwith:\n{new}")
        self._call("edit_file", {"path": excerpt.path, "old": old, "new": new}, "ok")
        self._answer(new)

    def exchange_test(self) -> None:
        """Run the tests of a file; the answer is the summary, the last line of the output."""
        excerpt = self.excerpts[int(self._draw.integers(len(self.excerpts)))]
        passed, failed = (int(self._draw.integers(low, high)) for low, high in ((2, 60), (0, 4)))
        output = [f"collected {passed + failed} items of {excerpt.path}"]
        for _ in range(failed):
            line = int(self._draw.integers(1, 400))
            output.append(f"{excerpt.path}:{line}: AssertionError")
        summary = f"{failed} failed, {passed} passed in {self._draw.integers(1, 900) / 100:.2f}s"
        self._ask(f"Run the tests of:\n{excerpt.path}\nand show the summary.")
        self._call("run_tests", {"path": excerpt.path}, "\n".join([*output, summary]))
        self._answer(summary)

    def exchange_ticket(self) -> None:
        """Ask for the session's ticket: the tool call and the quote, later the quote alone."""
        path, lines = self._ticket.path, self._ticket.lines
        if self._ticket in self.excerpts:
            self._ask(f"Show the code of {path} {_between(lines)}")
        else:
            self._ask(f"Open {path} and show the code {_between(lines)}")
            self._call("read_file", {"path": path}, "\n".join(lines))
            self.excerpts.append(self._ticket)
        self._answer("\n".join(lines))

    def _new_excerpt(self) -> _Excerpt | None:
        """Return a part of a file not opened before, or None when all were."""
        drawn = int(self._draw.integers(len(self._sources)))
        order = (*range(drawn, len(self._sources)), *range(drawn))
        number = next((number for number in order if number not in self._used_sources), None)
        if number is None:
            return None
        self._used_sources.add(number)
        source = self._sources[number]
        length = int(self._draw.integers(EXCERPT_LINES[0], EXCERPT_LINES[1] + 1))
        start = int(self._draw.integers(max(1, len(source.lines) - length)))
        lines = source.lines[start : start + length]
        return _Excerpt(source.path, tuple(line for line in lines if estimate_tokens(line) <= LINE_TOKENS_MAX))

    def _pick_range(self, excerpt: _Excerpt, context: _Context) -> tuple[str, ...] | None:
        """Return lines of the excerpt that two anchors determine, or None if the draws find none."""
        anchors = [number for number, line in enumerate(excerpt.lines) if _is_anchor(line)]
        for _ in range(DRAWS_MAX if anchors else 0):
            first = anchors[int(self._draw.integers(len(anchors)))]
            length = int(self._draw.integers(QUOTE_LINES[0], QUOTE_LINES[1] + 1))
            lines = excerpt.lines[first : first + length]
            if len(lines) < length or not _is_anchor(lines[-1]):
                continue
            if not context.unique((lines[0], lines[-1])) or not context.agrees(lines):
                continue
            if QUOTE_TOKENS[0] <= sum(1 + estimate_tokens(line) for line in lines) <= QUOTE_TOKENS[1]:
                return lines
        return None

    def _new_here(self, lines: Sequence[str]) -> bool:
        """Return whether no telling line of a new file's range stands in the context already."""
        telling = [line for line in lines if _is_anchor(line)]
        return not any(self._context.count[line] for line in telling) and self._context.agrees(lines)

    def _ask(self, text: str) -> None:
        self._take(Message("user", self._opening + text))
        self._opening = ""

    def _call(self, name: str, arguments: dict[str, str], result: str) -> None:
        self._reply(Message("assistant", tool_calls=(ToolCall(name, arguments),)))
        self._take(Message("tool", result))

    def _answer(self, text: str) -> None:
        self._reply(Message("assistant", text))

    def _take(self, message: Message) -> None:
        self._waiting.append(message)
        self._count(message)

    def _reply(self, message: Message) -> None:
        self.turns.append(Turn(tuple(self._waiting), message))
        self._waiting = []
        self._count(message)

    def _count(self, message: Message) -> None:
        texts = [message.content, *(v for call in message.tool_calls for v in call.arguments.values())]
        for text in texts:
            self._context.add(text)
            self.tokens += estimate_tokens(text) + text.count("\n") + 4


def _between(lines: Sequence[str]) -> str:
    return f"from:\n{lines[0]}\nto:\n{lines[-1]}"


def _is_anchor(line: str) -> bool:
    return len(_PIECES.findall(line)) >= ANCHOR_PIECES_MIN


def _runs(pieces: Sequence[str]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield each run of RUN_PIECES pieces with the piece that follows it."""
    shifted = (pieces[start:] for start in range(RUN_PIECES))
    return zip(zip(*shifted, strict=False), pieces[RUN_PIECES:], strict=False)


def _piece_tokens(piece: str) -> int:
    if piece.isspace():
        return 1
    return 1 + (len(piece) - 1) // (CHARS_PER_WORD_TOKEN if piece[-1].isalpha() else CHARS_PER_SIGN_TOKEN)
