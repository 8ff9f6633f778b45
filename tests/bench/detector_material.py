"""What the text detectors are measured on: windows of ordinary files, and synthesised corruption.

Ordinary windows come from the standard library and the installed packages, never from files that the
bundled 4-grams were counted on. Corruption is made with the bundled tokenizer and n-grams of held-out
files; real corrupted answers of the bundled model are measured where they are made.
"""

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from importlib.resources import files
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from detectors.text.tables.build import CODE, DATA, PROSE, read, roots, share
from repro.base.rng import generator

CALIBRATION = frozenset((6, 7))
REPORTED = frozenset((8, 9))
FILE_CHARS_MAX = 400_000
PROMPT_CHARS = 30_000
SUFFIXES = {"code": CODE, "data": DATA, "prose": PROSE}
WINDOWS_A_FILE = {"code": 2, "data": 12, "prose": 8, "log": 400}
LOG_COMMANDS = (
    ("-v", "-c", "import json, http.server, unittest, email.mime.text, xml.dom.minidom"),
    ("-X", "importtime", "-c", "import asyncio, sqlite3, ctypes, logging.config, concurrent.futures"),
    ("-m", "dis", "{stdlib}/textwrap.py"),
    ("-m", "tokenize", "{stdlib}/shlex.py"),
    ("-m", "unittest", "-v", "test.test_textwrap", "test.test_shlex", "test.test_fnmatch"),
    ("-m", "timeit", "-vv", "-n", "20", "sum(range(1000))"),
)


class Window(NamedTuple):
    """A stretch of an ordinary file, and what may have been its prompt."""

    kind: str
    name: str
    text: str
    prompt: str


class Positive(NamedTuple):
    """A corrupted answer: ordinary text up to `at`, then the corruption."""

    kind: str
    text: str
    at: int
    prompt: str


def windows(num: int, shares: frozenset[int], seed: int) -> Iterator[Window]:
    """Yield ordinary windows of 600 to 2,000 characters; half of them after their own file."""
    found = texts_of(shares)
    parts = {"code": 0.5, "data": 0.2, "prose": 0.2, "log": 0.1}
    for kind, part in parts.items():
        names = sorted(found[kind])
        draw = generator(seed, "windows", kind)
        order = draw.permutation(np.repeat(np.arange(len(names)), WINDOWS_A_FILE[kind]))
        for index in range(min(len(order), int(num * part))):
            name = names[order[index]]
            text = found[kind][name]
            length = int(draw.integers(600, 2001))
            start = int(draw.integers(0, max(1, len(text) - length)))
            other = found[kind][names[order[index - 1]]]
            prompt = text[max(0, start - PROMPT_CHARS) : start] if index % 2 else other[:PROMPT_CHARS]
            yield Window(kind, name, text[start : start + length], prompt)


def long_windows(num: int, shares: frozenset[int]) -> Iterator[Window]:
    """Yield stretches of 10,000 characters without a prompt, one a file."""
    found = texts_of(shares)
    long = [(kind, name) for kind in SUFFIXES for name in sorted(found[kind]) if len(found[kind][name]) >= 12_000]
    for index in generator(0, "long").permutation(len(long))[:num]:
        kind, name = long[index]
        yield Window("long", name, found[kind][name][2_000:12_000], "")


def texts_of(shares: frozenset[int]) -> dict[str, dict[str, str]]:
    """Return the texts of each kind by name."""
    found: dict[str, dict[str, str]] = {kind: {} for kind in (*SUFFIXES, "log")}
    for root in roots():
        for path in sorted(root.rglob("*")):
            kind = next((kind for kind, suffixes in SUFFIXES.items() if path.suffix in suffixes), None)
            inner = path.relative_to(root)
            if (
                kind is None
                or share(path, root) not in shares
                or (root == roots()[0] and "site-packages" in inner.parts)
            ):
                continue
            text = read(path, FILE_CHARS_MAX)
            if text and len(text) > 800 and _is_text(text):
                found[kind][str(inner)] = text
    for command in LOG_COMMANDS:
        found["log"][" ".join(command)] = _log(command)
    return found


def _is_text(text: str) -> bool:
    # Files of other encodings that happen to be UTF-8 (ISO-2022-JP test data) are no ordinary text.
    return "\x1b$" not in text


def _log(command: tuple[str, ...]) -> str:
    stdlib = str(roots()[0])
    done = subprocess.run(
        [sys.executable, *(part.format(stdlib=stdlib) for part in command)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    return (done.stdout + done.stderr)[:FILE_CHARS_MAX]


class Corruption:
    """Makes corrupted answers out of the bundled tokenizer and n-grams of ordinary files."""

    def __init__(self, shares: frozenset[int], seed: int, files_num: int = 300) -> None:
        self._draw = generator(seed, "corruption")
        self._tokenizer = Tokenizer.from_str(
            files("repro.serve.model").joinpath("checkpoint/tokenizer.json").read_text(encoding="utf-8")
        )
        code = texts_of(shares)["code"]
        names = sorted(code)
        chosen = [names[index] for index in self._draw.permutation(len(names))[:files_num]]
        self.texts = [code[name] for name in chosen]
        self._ids = [self._tokenizer.encode(text[:15_000], add_special_tokens=False).ids for text in self.texts]
        self._all = np.concatenate([np.array(ids) for ids in self._ids])
        self._after: dict[tuple[int, ...], list[int]] = {}
        flat = self._all.tolist()
        for order in (1, 2):
            for index in range(len(flat) - order):
                self._after.setdefault(tuple(flat[index : index + order]), []).append(flat[index + order])

    def positives(self, num_each: int) -> Iterator[Positive]:
        """Yield corrupted answers of every kind: up to 1,500 clean characters, then corruption."""
        for kind in (*LOOPS, *SALADS):
            for _ in range(num_each):
                own = self.texts[int(self._draw.integers(len(self.texts)))]
                other = self.texts[int(self._draw.integers(len(self.texts)))]
                at = int(self._draw.integers(0, 1501)) if self._draw.random() < 0.75 else 0
                start = int(self._draw.integers(0, max(1, len(own) - 3000)))
                clean = own[start : start + at]
                body = self._loop(kind, own) if kind in LOOPS else self._salad(kind)
                prompt = (
                    own[max(0, start - PROMPT_CHARS) : start + 3000]
                    if self._draw.random() < 0.5
                    else other[:PROMPT_CHARS]
                )
                yield Positive(kind, clean + body, len(clean), prompt)

    def tokens(self, text: str) -> list[str]:
        """Return the text as the deltas in which a server would stream it."""
        return [self._tokenizer.decode([token]) for token in self._tokenizer.encode(text, add_special_tokens=False).ids]

    def _loop(self, kind: str, own: str) -> str:
        lines = [line + "\n" for line in own.splitlines() if 20 <= len(line) <= 90] or ["        return value\n"]
        line = lines[int(self._draw.integers(len(lines)))]
        start = int(self._draw.integers(0, max(1, len(own) - 900)))
        word = self._word()
        units = {
            "loop of a piece x12": word[:6] * 12,
            "loop of '# ' x20": "# " * 20,
            "loop of '= ' x40": "= " * 40,
            "run of one digit x40": str(int(self._draw.integers(1, 10))) * 40,
            "run of '..' x30": ".." * 30,
            "run of a letter x60": word[0] * 60,
            "a line x6": line * 6,
            "a line x30": line * 30,
            "a piece x60, wrapped": textwrap.fill(
                f"'{word}', " * 60, 79, initial_indent="    ", subsequent_indent="        "
            ),
            "block of 250 x2.1": (own[start : start + 250] * 3)[:525],
            "three lines x5": "".join(lines[:3]) * 5,
            "block of 300 x4": own[start : start + 300] * 4,
            "block of 800 x4": own[start : start + 800] * 4,
            "a word and spaces x25": f" {word}" * 25,
            "numbered lines, one text": "".join(f"{number:6d}\t{line}" for number in range(40, 65)),
        }
        return units[kind]

    def _word(self) -> str:
        while True:
            word = self._tokenizer.decode([int(self._draw.choice(self._all))]).strip()
            if len(word) > 3 and word.isalpha():
                return word

    def _salad(self, kind: str) -> str:
        match kind:
            case "tokens, uniform":
                return self._decode(self._draw.integers(20, self._tokenizer.get_vocab_size() - 16, 300))
            case "tokens, by frequency":
                return self._decode(self._draw.choice(self._all, 400))
            case "tokens, cold (0.7)" | "tokens, hot (1.5)":
                return self._tempered(1 / 0.7 if "cold" in kind else 1 / 1.5)
            case "half bigrams" | "bigrams 0.8" | "all bigrams":
                return self._chain({"half bigrams": 0.5, "bigrams 0.8": 0.8, "all bigrams": 1.0}[kind], 0.0)
            case "trigrams 0.7":
                return self._chain(0.15, 0.7)
            case "fragments of 1" | "fragments of 2" | "fragments of 3" | "fragments of 5":
                return self._shuffled(int(kind[-1]))
            case "fragments of many files":
                return self._decode(np.concatenate([self._piece(int(self._draw.integers(2, 7))) for _ in range(90)]))
            case "words of one file":
                words = self.texts[int(self._draw.integers(len(self.texts)))][:8000].split(" ")
                return " ".join(words[index] for index in self._draw.permutation(len(words)))[:1200]
            case "symbols":
                return "".join(self._draw.choice(list("!#$%&()*+,-./:;<=>?@[]^_{|}~ \n"), 500))
            case "mixed scripts":
                return self._mixed_scripts()
            case "mojibake":
                return "".join(map(chr, self._draw.integers(0x4E00, 0x9FA5, 130))).encode().decode("latin-1")
            case "broken bytes":
                return bytes(self._draw.integers(32, 256, 300).tolist()).decode("utf-8", "replace")
            case "control characters":
                return "".join(map(chr, self._draw.integers(0, 128, 300)))
            case "private use":
                return "".join(map(chr, self._draw.integers(0xE000, 0xF8FF, 60)))
        raise ValueError(kind)

    def _decode(self, ids: np.ndarray) -> str:
        return self._tokenizer.decode([int(token) for token in ids])

    def _tempered(self, power: float) -> str:
        counts = np.bincount(self._all).astype(float) ** power
        return self._decode(self._draw.choice(len(counts), 400, p=counts / counts.sum()))

    def _chain(self, bigram: float, trigram: float) -> str:
        ids = [int(token) for token in self._draw.choice(self._all, 2)]
        for _ in range(400):
            draw = self._draw.random()
            order = 2 if draw < trigram else 1 if draw < trigram + bigram else 0
            after = self._after.get(tuple(ids[-order:])) if order else None
            ids.append(after[int(self._draw.integers(len(after)))] if after else int(self._draw.choice(self._all)))
        return self._decode(np.array(ids))

    def _piece(self, length: int) -> np.ndarray:
        ids = self._ids[int(self._draw.integers(len(self._ids)))]
        start = int(self._draw.integers(max(1, len(ids) - length)))
        return np.array(ids[start : start + length], int)

    def _shuffled(self, size: int) -> str:
        ids = self._piece(500)
        pieces = [ids[start : start + size] for start in range(0, len(ids), size)]
        return self._decode(np.concatenate([pieces[index] for index in self._draw.permutation(len(pieces))]))

    def _mixed_scripts(self) -> str:
        ranges = [
            (0x4E00, 0x9FA5),
            (0x410, 0x44F),
            (0x3041, 0x3096),
            (0xAC00, 0xD7A3),
            (0x627, 0x64A),
            (97, 122),
            (0x905, 0x939),
        ]
        parts = []
        for _ in range(130):
            low, high = ranges[int(self._draw.integers(len(ranges)))]
            parts.append("".join(map(chr, self._draw.integers(low, high + 1, int(self._draw.integers(1, 6))))))
            parts.append(" " * int(self._draw.random() < 0.3))
        return "".join(parts)


LOOPS = (
    "loop of a piece x12",
    "loop of '# ' x20",
    "loop of '= ' x40",
    "run of one digit x40",
    "run of '..' x30",
    "run of a letter x60",
    "a line x6",
    "a line x30",
    "a piece x60, wrapped",
    "block of 250 x2.1",
    "three lines x5",
    "block of 300 x4",
    "block of 800 x4",
    "a word and spaces x25",
    "numbered lines, one text",
)
SALADS = (
    "tokens, uniform",
    "tokens, by frequency",
    "tokens, cold (0.7)",
    "tokens, hot (1.5)",
    "half bigrams",
    "bigrams 0.8",
    "all bigrams",
    "trigrams 0.7",
    "fragments of 1",
    "fragments of 2",
    "fragments of 3",
    "fragments of 5",
    "fragments of many files",
    "words of one file",
    "symbols",
    "mixed scripts",
    "mojibake",
    "broken bytes",
    "control characters",
    "private use",
)
