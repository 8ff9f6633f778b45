"""Judges whether text is a salad of tokens or symbols, by the n-grams it is made of.

Does each 4-gram of letters and marks occur in ordinary text, does it or its 6-gram occur shortly
before in this answer, or in the prompt? Each combination has a log-likelihood ratio of salad against
ordinary text. A CUSUM over blocks sees corruption that begins late. Digits, other scripts, indentation
and blobs (digests, base64) do not vote, so grammar and language do not matter.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from detectors.text.tables import grams

BLOCK_CHARS = 512  # one CUSUM step; 256 would cost half as much again
CONTEXT_CHARS = grams.LONG_ORDER - 1

# A character's cell: 3 when its 4-gram is common, plus what was seen shortly before in this answer or
# in the prompt: 0 nothing, 1 the 4-gram, 2 the 6-gram; or NO_VOTE.
SHORT_SEEN, LONG_SEEN, COMMON, NO_VOTE = 1, 2, 3, 6
# Log-likelihood ratio of each cell in bits, salad against ordinary text, as `python -m
# tests.bench.detectors --calibration --weights` counts it, less a drift. The first block has nothing
# before it that could support it: there a common 4-gram says nothing.
DRIFT_BITS = 0.1
WEIGHTS = np.array([4.05, 2.15, -0.9, 0.6, 0.1, -2.65, DRIFT_BITS], np.float32) - np.float32(DRIFT_BITS)
FIRST_WEIGHTS = np.array([4.05, 2.15, -0.9, 0.1, 0.1, -2.65, DRIFT_BITS], np.float32) - np.float32(DRIFT_BITS)
# Neighbouring characters are not independent, so no error rate follows from the sum. A page of regular
# expressions scores like salad (187 bits in textwrap.py), but it ends; so one block adds at most
# BLOCK_BITS_MAX, two are the least that convict, and the answer's end asks for less. False alarms on
# calibration files: 0.0015 of 4,752 windows of 600 to 2,000 characters, 0.0027 of 1,500 of 10,000
# characters without a prompt (without the cap 0.026). A drift of 0.2 would halve both and the recall of
# the mildest salads.
BLOCK_BITS_MAX = 100.0
RUNNING_LIMIT_BITS = 190.0
ENDED_LIMIT_BITS = 50.0
# Text that is new in every word but known in every 4-gram adds up as well; salad has 8 % and more that
# nothing supports (false alarms with 0 to 2 % were half of all).
RARE_SHARE_MIN = 0.03
RARE_BLOCKS = 4  # the last ones, in which the share is counted
SUSPICIOUS_BITS = 10.0  # a block below it is not searched for blobs

SLOTS_BITS = 14
HORIZON_CHARS = 1024  # how far back the answer supports itself; fills 6 % of the slots
PROMPT_CHARS_MAX = 1 << 20  # a longer prompt counts by its end
PROMPT_SLOTS_PER_GRAM = 16
SPREAD = np.uint32(0x9E3779B1)  # 2**32 / golden ratio: multiplicative hashing
BLOB_CHARS = 40  # a longer run of letters, digits, + and / is data
CUT_BLOB_CHARS = 12  # ... and of one that the block's edge cuts, this much
TRAIL_BLOCKS = 16  # what a sum above zero may rest on when the prompt is asked

Slots = npt.NDArray[np.intp]
Weights = npt.NDArray[np.float32]


class Votes(NamedTuple):
    """A block as the judge sees it, a row per character."""

    cell: grams.Folded
    bits: float  # evidence of the block for salad, above the drift
    short: grams.Codes
    long: grams.Codes
    weights: Weights


class Salad:
    """The CUSUM over the blocks of one answer."""

    def __init__(self, prompt: str) -> None:
        self._prompt = prompt
        self._prompt_grams: PromptGrams | None = None
        self._answer_grams = AnswerGrams()
        self._context = np.full(CONTEXT_CHARS, grams.NEWLINE, np.uint8)
        self._weights = FIRST_WEIGHTS
        self._trail: list[Votes] = []  # the blocks since the sum was last zero
        self.bits = 0.0

    def feed(self, block: str) -> bool:
        """Take the next block; true when the answer is salad."""
        votes = self.votes(block)
        if self._prompt_grams is not None:
            votes = self._prompt_grams.supported(votes)
        self._add(votes)
        return self._beyond(RUNNING_LIMIT_BITS)

    def ended(self) -> bool:
        """Return whether the answer ends in salad."""
        return self._beyond(ENDED_LIMIT_BITS)

    def votes(self, block: str) -> Votes:
        """Return how the characters of the next block vote, and remember them."""
        folded = np.concatenate((self._context, grams.fold(block)))
        self._context = folded[-CONTEXT_CHARS:]
        pair = grams.pairs(folded)
        code = grams.codes(pair)
        short, long = code[2:], grams.long_codes(pair, code)
        cell = self._answer_grams.seen(short, long)
        cell += grams.common_table()[short] * np.uint8(COMMON)
        cell[~_VOTING_PAIR[pair[4:]]] = NO_VOTE
        if not block.isascii():
            _silence_other(cell, folded)
        weights, self._weights = self._weights, WEIGHTS
        bits = float(weights[cell].sum())
        if bits > SUSPICIOUS_BITS:
            _silence_blobs(cell, folded[CONTEXT_CHARS:])
            bits = float(weights[cell].sum())
        return Votes(cell, bits, short, long, weights)

    def rare_share(self) -> float:
        """Return the share of unsupported characters among the last that the sum rests on."""
        last = [votes.cell for votes in self._trail[-RARE_BLOCKS:]]
        cells = np.bincount(np.concatenate(last), minlength=NO_VOTE + 1)
        return float(cells[0]) / max(1, int(cells[:NO_VOTE].sum()))

    def _add(self, votes: Votes) -> None:
        self.bits = max(0.0, self.bits + min(votes.bits, BLOCK_BITS_MAX))
        self._trail = [*self._trail[1 - TRAIL_BLOCKS :], votes] if self.bits > 0 else []

    def _beyond(self, limit_bits: float) -> bool:
        if self.bits > limit_bits and self._prompt_grams is None:
            self._ask_prompt()
        return self.bits > limit_bits and self.rare_share() >= RARE_SHARE_MIN

    def _ask_prompt(self) -> None:
        # The index of a long prompt costs milliseconds, so only a suspect pays for it: what has been
        # counted so far is counted again with what the prompt supports.
        self._prompt_grams = PromptGrams(self._prompt)
        trail, self._trail, self.bits = self._trail, [], 0.0
        for votes in trail:
            self._add(self._prompt_grams.supported(votes))


class AnswerGrams:
    """Where the answer's own n-grams last stood: slots for 4-grams, then for 6-grams; modulo 2**16."""

    def __init__(self) -> None:
        self._places = np.zeros(2 << SLOTS_BITS, np.uint16)
        self._end = HORIZON_CHARS + 1  # an empty slot is out of sight

    def seen(self, short: grams.Codes, long: grams.Codes) -> grams.Folded:
        """Return what of each character stood in the answer before, and remember all."""
        num = len(short)
        slots = _slots(np.concatenate((short, long)), SLOTS_BITS)
        slots[num:] += 1 << SLOTS_BITS
        places = _COUNT[:num] + np.uint16(self._end % (1 << 16))
        places = np.concatenate((places, places))
        self._end += num
        near = (places - self._places[slots]) <= HORIZON_CHARS
        # Written backwards, the first of equal n-grams of this block stays: the others have seen it.
        self._places[slots[::-1]] = places[::-1]
        near |= self._places[slots] != places
        return np.maximum(near[:num], near[num:] * np.uint8(LONG_SEEN))


class PromptGrams:
    """The n-grams of the prompt as two hashed bitmaps."""

    def __init__(self, prompt: str) -> None:
        folded = np.concatenate(
            (np.full(CONTEXT_CHARS, grams.NEWLINE, np.uint8), grams.fold(prompt[-PROMPT_CHARS_MAX:]))
        )
        pair = grams.pairs(folded)
        code = grams.codes(pair)
        self._bits = max(16, (len(folded) * PROMPT_SLOTS_PER_GRAM).bit_length())
        self._short = self._bitmap(code)
        self._long = self._bitmap(grams.long_codes(pair, code))

    def supported(self, votes: Votes) -> Votes:
        """Return the votes with the prompt's n-grams counted as seen."""
        seen = np.maximum(self._has(self._short, votes.short), self._has(self._long, votes.long) * np.uint8(LONG_SEEN))
        cell = votes.cell - votes.cell % COMMON + np.maximum(votes.cell % COMMON, seen)
        cell[votes.cell == NO_VOTE] = NO_VOTE
        return votes._replace(cell=cell, bits=float(votes.weights[cell].sum()))

    def _bitmap(self, code: grams.Codes) -> grams.Folded:
        table = np.zeros(1 << self._bits, np.bool_)
        table[_slots(code, self._bits)] = True
        return np.packbits(table, bitorder="little")

    def _has(self, bitmap: grams.Folded, code: grams.Codes) -> grams.Folded:
        slots = _slots(code, self._bits)
        has: grams.Folded = bitmap[slots >> 3] >> (slots & 7).astype(np.uint8) & np.uint8(1)
        return has


def _slots(code: grams.Codes, bits: int) -> Slots:
    return ((code * SPREAD) >> np.uint32(32 - bits)).astype(np.intp)


def _voting_pairs() -> grams.Mask:
    pair = np.arange(grams.CLASSES * grams.CLASSES)
    before, last = pair >> grams.CLASS_BITS, pair & (grams.CLASSES - 1)
    indented = (last == grams.SPACE) & (before == grams.SPACE)
    voting: grams.Mask = (last != grams.DIGIT) & ~indented
    return voting


def _blob_classes() -> grams.Mask:
    table = np.zeros(grams.CLASSES, np.bool_)
    table[: grams.DIGIT + 1] = True
    table[grams.fold("+/")] = True
    return table


_COUNT = np.arange(2 * BLOCK_CHARS, dtype=np.uint16)  # a character beyond the BMP is two classes
_VOTING_PAIR = _voting_pairs()
_BLOB_CLASS = _blob_classes()


def _silence_other(cell: grams.Folded, folded: grams.Folded) -> None:
    """Take the vote of every 4-gram that holds a character of another script."""
    other = folded == grams.OTHER
    for back in range(grams.ORDER):
        cell[other[CONTEXT_CHARS - back : len(folded) - back]] = NO_VOTE


def _silence_blobs(cell: grams.Folded, last: grams.Folded) -> None:
    """Take the vote of long runs of letters and digits, also of shorter ones that the block's edge cuts."""
    breaks = np.flatnonzero(~_BLOB_CLASS[last])
    starts = np.concatenate(([0], breaks + 1))
    ends = np.concatenate((breaks, [len(last)]))
    least = np.full(len(starts), BLOB_CHARS)
    least[[0, -1]] = CUT_BLOB_CHARS
    for index in np.flatnonzero(ends - starts >= least):
        cell[starts[index] : ends[index] + 1] = NO_VOTE
