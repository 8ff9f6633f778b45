"""What training sessions have beyond the synthesiser's: renamed identifiers, other agents' habits.

Renaming leaves a file's shape and takes away what could be known by heart, so that only copying from
the context helps.
"""

import re
from collections.abc import Sequence

import numpy as np

from repro.trace.corpus import SourceFile
from repro.trace.format import Message, Session, ToolCall, Turn

SLICE_LINES = 80
FOLDERS = ("", "", "src/", "lib/", "app/", "core/", "server/", "client/", "tools/", "pkg/utils/", "tests/")
RENAMED_SHARE = 0.7  # share of words exchanged in a session with renamed identifiers
INVENTED_SHARE = 0.15

_WORD = re.compile(r"[A-Za-z]{3,}")
_PROMPTS = (
    "You are a helpful assistant.", "You are an expert programmer.", "", "Answer briefly.",
    "You are a coding agent working in a repository. Think, then act.", "You review patches.",
)  # fmt: skip
_TOOL_NAMES = ("bash", "view", "grep", "write_file", "apply_patch", "list_dir", "glob", "web_search")
_ASKS = (
    "Please explain this:",
    "What does it do?",
    "Fix it.",
    "Continue.",
    "Thanks! Now refactor",
    "Write a test for",
)


def words(line: str) -> list[str]:
    """Return what counts as a word when identifiers are renamed."""
    return _WORD.findall(line)


def slices(draw: np.random.Generator, sources: Sequence[SourceFile], count: int) -> tuple[SourceFile, ...]:
    """Return parts of `count` files, each under a path of its own."""
    found: dict[str, SourceFile] = {}
    for number in draw.integers(len(sources), size=count):
        source = sources[int(number)]
        start = int(draw.integers(max(1, len(source.lines) - SLICE_LINES)))
        path = f"{FOLDERS[int(draw.integers(len(FOLDERS)))]}{source.path}"
        found[path] = SourceFile(path, source.lines[start : start + SLICE_LINES])
    return tuple(found.values())


def renamed(draw: np.random.Generator, sources: Sequence[SourceFile], words: Sequence[str]) -> tuple[SourceFile, ...]:
    """Return the files with most words exchanged for others, the same word always for the same."""
    names: dict[str, str] = {}

    def exchange(match: re.Match[str]) -> str:
        word = match[0]
        if word not in names:
            names[word] = _new_name(draw, words) if draw.random() < RENAMED_SHARE else word
        return names[word]

    return tuple(
        SourceFile(
            _WORD.sub(exchange, source.path.removesuffix(".py")) + ".py",
            tuple(_WORD.sub(exchange, line) for line in source.lines),
        )
        for source in sources
    )


def chat(draw: np.random.Generator, sources: Sequence[SourceFile], turns: int) -> Session:
    """Return a session of another agent: other prompts, tools, habits; its answers are plain source."""
    prompt = _PROMPTS[int(draw.integers(len(_PROMPTS)))]
    waiting = [Message("system", prompt)] if prompt else []
    written: list[Turn] = []
    for _ in range(turns):
        ask = _ASKS[int(draw.integers(len(_ASKS)))]
        waiting.append(Message("user", f"{ask}\n{_passage(draw, sources, 1, 12)}"))
        while draw.random() < 0.5:
            name = _TOOL_NAMES[int(draw.integers(len(_TOOL_NAMES)))]
            call = ToolCall(name, {"command": _passage(draw, sources, 1, 2)})
            said = _passage(draw, sources, 1, 2) if draw.random() < 0.3 else ""
            written.append(Turn(tuple(waiting), Message("assistant", said, (call,))))
            waiting = [Message("tool", _passage(draw, sources, 1, 40))]
        written.append(Turn(tuple(waiting), Message("assistant", _passage(draw, sources, 1, 25))))
        waiting = []
    return Session(id="chat", turns=tuple(written))


def _passage(draw: np.random.Generator, sources: Sequence[SourceFile], fewest: int, most: int) -> str:
    lines = sources[int(draw.integers(len(sources)))].lines
    start = int(draw.integers(len(lines)))
    return "\n".join(lines[start : start + int(draw.integers(fewest, most + 1))])


def _new_name(draw: np.random.Generator, words: Sequence[str]) -> str:
    if draw.random() < INVENTED_SHARE:
        return "".join(chr(97 + int(letter)) for letter in draw.integers(26, size=int(draw.integers(3, 9))))
    return words[int(draw.integers(len(words)))]
