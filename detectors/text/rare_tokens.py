"""Finds tokens and characters that no healthy answer holds.

- *impossible ids*: padding rows, ids without a token, control tokens in the content. One convicts.
- *surprisal*: with log-probabilities given, a CUSUM of -log p, and single tokens of next to no
  probability. A corrupted cache makes the model unsure of its own words.
- *leaked control tokens*: their spelling within the text, for servers that tell no ids.
- *rare characters*: private use, unassigned, control, unusual planes, when the prompt has none of them.
"""

from collections import deque
from math import inf, isnan
from typing import NamedTuple

import msgspec

from detectors.base import Finding
from detectors.evidence import ControlSpan, Evidence, ImpossibleToken, RareSpan, SurprisingTokens
from detectors.text import characters
from detectors.text.blocks import Blocks

BLOCK_CHARS = 512
BLOCK_TOKENS = 32  # log-probabilities are summed in groups
RARE_CHARACTERS_MIN = 3  # within two blocks

# Sampled text averages at most about 1.5 nats a token (temperature 1), greedy text far less. Beyond it
# the sum grows: 40 nats are 20 tokens at 3.5 nats. A token below exp(-12) = 6e-6 is sampled from a
# healthy distribution once in thousands of tokens; three within 64 are not.
DRIFT_NATS = 1.5
LIMIT_NATS = 40.0
TOKEN_NATS_MAX = 8.0  # one token adds at most this, so that no single one convicts by the sum
PEAK_NATS = 12.0
PEAKS_MIN = 3
PEAK_WINDOW_TOKENS = 64


NAMES_MAX = 8
EXCERPT_SIDE_CHARS = 80


class Claim(NamedTuple):
    """What one of the three has found."""

    kind: str
    what: str
    evidence: Evidence


class Vocabulary(msgspec.Struct, frozen=True):
    """Which token ids an answer may hold."""

    size: int  # rows of the output layer, padding rows included
    reachable: frozenset[int]  # ids that decode to a token; empty: ids are not judged
    special: frozenset[int] = frozenset()  # control tokens that no content holds: roles, masks, padding
    ends: frozenset[int] = frozenset()  # the control tokens that may come last
    spellings: tuple[str, ...] = ()  # how control tokens look in text, for streams without ids

    def spelled_only(self) -> "Vocabulary":
        """Return a vocabulary for another model's answers: no id is judged, spellings are."""
        return msgspec.structs.replace(self, reachable=frozenset())

    @property
    def plain(self) -> frozenset[int]:
        """Return the ids that may stand anywhere."""
        return self.reachable - self.special - self.ends


class RareTokens:
    """The detector of impossible ids, surprising tokens and rare characters; one finding of each kind."""

    name = "rare_tokens"

    def __init__(self, prompt: str = "", vocabulary: Vocabulary | None = None) -> None:
        self._impossible = ImpossibleIds(vocabulary) if vocabulary is not None and vocabulary.reachable else None
        self._surprisal = Surprisal()
        self._logprobs: list[float] = []
        self._rare = RareCharacters(prompt)
        self._leaks = Leaks(prompt, vocabulary.spellings if vocabulary is not None else ())
        self._blocks = Blocks(BLOCK_CHARS)
        self._waiting: list[Finding] = []  # found in the same step as another one

    def feed(self, text: str, tokens: tuple[int, ...] = (), logprobs: tuple[float, ...] = ()) -> Finding | None:
        """Take the next piece of the answer; returns the most certain finding first, another at the next call."""
        if tokens and self._impossible is not None:
            for token in tokens:
                if token not in self._impossible.plain:
                    self._note(self._impossible.judge(token))
        if logprobs:
            self._logprobs += logprobs
            if len(self._logprobs) >= BLOCK_TOKENS:
                self._note(self._surprised())
        for block in self._blocks.feed(text) if text else ():
            self._judge(block)
        return self._waiting.pop(0) if self._waiting else None

    def close(self) -> Finding | None:
        """Judge the last, incomplete block."""
        self._note(self._surprised())
        self._judge(self._blocks.waiting)
        return self._waiting.pop(0) if self._waiting else None

    def _surprised(self) -> Claim | None:
        logprobs, self._logprobs = self._logprobs, []
        return self._surprisal.feed(logprobs)

    def _judge(self, block: str) -> None:
        self._note(self._leaks.feed(block))
        self._note(self._rare.feed(block))

    def _note(self, claim: Claim | None) -> None:
        if claim is not None:
            text = f"{claim.kind}: {claim.what}"
            self._waiting.append(Finding(self.name, "text", text, claim.kind, evidence=claim.evidence))


class ImpossibleIds:
    """Judges the ids that may not stand anywhere."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._end: int | None = None
        self._found = False
        self.plain = vocabulary.plain  # what needs no judging; empty after an end

    def judge(self, token: int) -> Claim | None:
        """Take an id that is not plain; a claim about the first impossible one."""
        what = self._wrong(token)
        if token in self._vocabulary.ends:
            self._end, self.plain = token, frozenset()
        if not what or self._found:
            return None
        self._found = True
        return Claim("impossible id", what, ImpossibleToken(token))

    def _wrong(self, token: int) -> str:
        if self._end is not None:
            return f"id {token} follows the end token {self._end}"
        if token in self._vocabulary.ends:
            return ""
        if token in self._vocabulary.special:
            return f"control token {token} stands in the content"
        if 0 <= token < self._vocabulary.size:
            return f"id {token} is a padding row that stands for no token"
        return f"id {token} lies outside the vocabulary of {self._vocabulary.size}"


class Surprisal:
    """A CUSUM over the surprisal of the emitted tokens, and a count of single surprises."""

    def __init__(self) -> None:
        self._nats = 0.0
        self._seen = 0
        self._peaks: deque[int] = deque(maxlen=PEAKS_MIN)
        self._found = False

    def feed(self, logprobs: list[float]) -> Claim | None:
        """Take the next log-probabilities; a claim when they are no healthy model's."""
        if self._found or not logprobs:
            return None
        if not self._nats and min(logprobs) >= -DRIFT_NATS and not isnan(sum(logprobs)):
            self._seen += len(logprobs)
            return None
        for logprob in logprobs:
            # Not a number is no probability at all: as surprising as can be.
            surprise = inf if isnan(logprob) else -logprob
            self._nats = max(0.0, self._nats + min(surprise, TOKEN_NATS_MAX) - DRIFT_NATS)
            if surprise > PEAK_NATS:
                self._peaks.append(self._seen)
            self._seen += 1
            peaks = len(self._peaks) == PEAKS_MIN and self._seen - self._peaks[0] <= PEAK_WINDOW_TOKENS
            if self._nats > LIMIT_NATS or peaks:
                return self._claim(peaks=peaks)
        return None

    def _claim(self, *, peaks: bool) -> Claim:
        self._found = True
        what = f"the model is {self._nats:.0f} nats more surprised by its own words than a healthy one"
        if peaks:
            what = f"{PEAKS_MIN} tokens of less than exp(-{PEAK_NATS:.0f}) within {PEAK_WINDOW_TOKENS}"
        return Claim("surprising tokens", what, SurprisingTokens(round(self._nats, 1), self._seen))


class Leaks:
    """Looks for the spellings of control tokens within the text; one at its very end is an end."""

    def __init__(self, prompt: str, spellings: tuple[str, ...]) -> None:
        self._spellings = tuple(spelling for spelling in spellings if spelling not in prompt)
        self._overlap = max(map(len, self._spellings), default=0)
        self._tail = ""

    def feed(self, block: str) -> Claim | None:
        """Take the next block; a claim about the first spelling that text follows."""
        if not self._spellings:
            return None
        text = self._tail + block
        self._tail = text[-self._overlap :]
        for spelling in self._spellings:
            at = text.find(spelling)
            if 0 <= at < len(text) - len(spelling):
                self._spellings = ()
                excerpt = text[max(0, at - EXCERPT_SIDE_CHARS) : at + len(spelling) + EXCERPT_SIDE_CHARS]
                return Claim("leaked control token", f"{spelling} stands in the content", ControlSpan(excerpt))
        return None


class RareCharacters:
    """Counts characters that are control, private, unassigned or of an unusual plane."""

    def __init__(self, prompt: str) -> None:
        self._prompt = prompt
        self._seen = 0
        self._before: list[str] = []  # rare characters of the block before
        self._found = False

    def feed(self, block: str) -> Claim | None:
        """Take the next block; a claim when it and the one before hold too many."""
        self._seen += len(block)
        rare: list[str] = []
        if not block.isascii() or characters.CONTROL.search(block):
            rare = [mark for mark in block if characters.is_rare(mark) and mark not in self._prompt]
        both, self._before = self._before + rare, rare
        if self._found or len(both) < RARE_CHARACTERS_MIN:
            return None
        self._found = True
        names = ", ".join(f"U+{ord(mark):04X}" for mark in both[:NAMES_MAX])
        what = f"{len(both)} control, private, unassigned or unusual characters, such as {names}"
        return Claim("rare characters", what, RareSpan(len(both), self._seen))
