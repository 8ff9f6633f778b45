"""Finds loops: text that repeats a unit of 1 to 1,024 characters to its own end.

Code repeats itself honestly, so three things must come together: the covered span is longer than
ordinary files show for this kind of unit (ruler, number, text), it reaches to the end of what has
been written, and it is new: what the prompt repeats too is taken off. A span may be shorter when the
answer ends in it, because a loop does not end by itself. Text is searched a second time with each run of
white space as one blank, which finds loops that are wrapped into lines. Token ids that loop without any
text count too.
"""

from typing import Literal, NamedTuple

from detectors.base import Finding
from detectors.evidence import LoopSpan
from detectors.text.blocks import Blocks
from detectors.text.loops import Loop, beyond, loops

BLOCK_CHARS = 64  # characters between two searches of the tail; a search without a loop takes about 2 us
PERIOD_CHARS_MAX = 1024
TAIL_CHARS = 5 * PERIOD_CHARS_MAX
ANCHORS_CHARS = (16, 64, 256)

# Ids without visible text, such as special tokens: each is mapped to one character, and loops are searched in those.
BLOCK_TOKENS = 32
PERIOD_TOKENS_MAX = 128
TAIL_TOKENS = 8 * PERIOD_TOKENS_MAX
ANCHORS_TOKENS = (8, 32)
SILENT_TOKENS_MIN = 256
SILENT_REPEATS_MIN = 8.0
CODE_POINTS = 0x110000

UNIT_SHOWN_CHARS = 200

Kind = Literal["ruler", "number", "text"]


class Need(NamedTuple):
    """What a loop of this kind must cover, up to this period, running on or at the answer's end."""

    kind: Kind
    period_max: int
    running_chars: int
    running_repeats: float
    ended_chars: int
    ended_repeats: float


# The longest exact repetitions in 10,752 windows (600 to 2,000 characters) of ordinary files: rulers 97
# characters; numbers 50 of one digit, 128 of "0,", up to a period of 64 once 342, and once 1,445 (4.4
# repeats); text 48 of one character, 79 (6 repeats) up to a period of 16, 353 (7 repeats) and 292 (8) up
# to 64. Of 121,740 places where a window might have ended, 0.0005 meet the needs of text at the end; one
# of 11,296 windows meets those of text running on. With white space squeezed: 0.0005 and none. A
# corrupted model of 200 tokens often has room for two copies of a function only, so two convict there.
NEEDS = (
    Need("ruler", 1, 200, 1, 120, 1),
    Need("number", 1, 96, 1, 32, 1),
    Need("number", 4, 256, 1, 144, 1),
    Need("number", 64, 512, 12, 256, 8),
    Need("number", PERIOD_CHARS_MAX, 1024, 6, 512, 5),
    Need("text", 4, 96, 12, 32, 12),
    Need("text", 16, 128, 8, 40, 5.5),
    Need("text", 64, 300, 5, 100, 3.5),
    Need("text", PERIOD_CHARS_MAX, 300, 3, 300, 2),
)
RULERS = frozenset(" \t\n-=*#_~+/\u2500\u2501\u2550")
NUMERIC = frozenset("0123456789.,+-eExX \t\n;:|/[](){}\"'")
DIGITS = frozenset("0123456789")


class Repetition:
    """The detector of loops; at most one finding an answer."""

    name = "repetition"

    def __init__(self, prompt: str = "") -> None:
        self._prompt = prompt
        self._blocks = Blocks(BLOCK_CHARS)
        self._tail = ""
        self._squeezed = ""  # the tail with each run of white space as one blank
        self._squeezed_prompt: str | None = None
        self._seen = 0
        self._asked_until = 0  # the prompt repeats this loop too: no search before so many characters
        self._ids: list[int] = []
        self._id_tail = ""
        self._found = False

    def feed(self, text: str, tokens: tuple[int, ...] = (), logprobs: tuple[float, ...] = ()) -> Finding | None:
        """Take the next piece of the answer; returns a finding at the end of a block."""
        if self._found:
            return None
        for block in self._blocks.feed(text) if text else ():
            self._grow(block)
            finding = self._judge(ended=False)
            if finding:
                return finding
        if tokens:
            self._ids += tokens
            if len(self._ids) >= BLOCK_TOKENS:
                return self._silent()
        return None

    def close(self) -> Finding | None:
        """Search the end of the answer: a loop that nothing follows may be shorter."""
        if self._found:
            return None
        self._grow(self._blocks.end())
        self._asked_until = 0
        return self._judge(ended=True) or self._silent()

    def _grow(self, text: str) -> None:
        self._seen += len(text)
        self._tail = (self._tail + text)[-TAIL_CHARS:]
        words = " ".join(text.split())
        # The blanks that split() drops at both ends; never two of them in a row.
        before = " " if text[:1].isspace() and not self._squeezed.endswith(" ") else ""
        after = " " if words and text[-1:].isspace() else ""
        self._squeezed = (self._squeezed + before + words + after)[-TAIL_CHARS:]

    def _judge(self, *, ended: bool) -> Finding | None:
        if self._seen < self._asked_until:
            return None
        tail, squeezed = self._tail, self._squeezed
        if ended:
            tail, squeezed = tail.rstrip() or tail, squeezed.rstrip()
        for loop in loops(tail, ANCHORS_CHARS, PERIOD_CHARS_MAX):
            if convicts(loop, ended=ended) and self._is_new(loop, tail, self._prompt, ended=ended):
                return self._finding(kind_of(loop.unit), loop)
        for loop in loops(squeezed, ANCHORS_CHARS, PERIOD_CHARS_MAX):
            # Columns of numbers are ordinary text that repeats over lines.
            if kind_of(loop.unit) == "text" and convicts(loop, ended=ended):
                if self._squeezed_prompt is None:
                    self._squeezed_prompt = " ".join(self._prompt.split())
                if self._is_new(loop, squeezed, self._squeezed_prompt, ended=ended):
                    return self._finding("wrapped text", loop)
        return None

    def _is_new(self, loop: Loop, tail: str, prompt: str, *, ended: bool) -> bool:
        if convicts(beyond(loop, tail, prompt), ended=ended):
            return True
        # Searching a long prompt takes up to a millisecond: not again for every block of the same copy.
        self._asked_until = self._seen + loop.span // 4
        return False

    def _silent(self) -> Finding | None:
        """Return a finding when the ids loop but the text does not show it."""
        self._id_tail = (self._id_tail + "".join([chr(token % CODE_POINTS) for token in self._ids]))[-TAIL_TOKENS:]
        self._ids = []
        for loop in loops(self._id_tail, ANCHORS_TOKENS, PERIOD_TOKENS_MAX):
            if loop.span < SILENT_TOKENS_MIN or loop.repeats < SILENT_REPEATS_MIN:
                continue
            text = self._tail + self._blocks.waiting
            if next(loops(text, ANCHORS_CHARS, PERIOD_CHARS_MAX), None) is None:
                return self._finding("silent", loop)
        return None

    def _finding(self, kind: str, loop: Loop) -> Finding:
        self._found = True
        silent = kind == "silent"
        unit = tuple(ord(token) for token in loop.unit) if silent else loop.unit[:UNIT_SHOWN_CHARS]
        evidence = LoopSpan(unit, len(loop.unit), round(loop.repeats, 1), loop.span, self._seen)
        what = "token ids that show no text" if silent else "characters"
        claim = f"the answer repeats {len(loop.unit)} {what} {loop.repeats:.0f} times, to its end"
        return Finding(self.name, "text", claim, f"loop of {kind}", evidence=evidence)


def kind_of(unit: str) -> Kind:
    """Return what the unit is made of, which says how far ordinary files repeat it."""
    if len(unit) == 1 and unit in RULERS:
        return "ruler"
    marks = set(unit)
    return "number" if marks & DIGITS and marks <= NUMERIC else "text"


def convicts(loop: Loop, *, ended: bool) -> bool:
    """Return whether no ordinary text repeats a unit of this kind so far."""
    kind, period = kind_of(loop.unit), len(loop.unit)
    need = next(need for need in NEEDS if need.kind == kind and period <= need.period_max)
    if ended:
        return loop.span >= need.ended_chars and loop.repeats >= need.ended_repeats
    return loop.span >= need.running_chars and loop.repeats >= need.running_repeats
