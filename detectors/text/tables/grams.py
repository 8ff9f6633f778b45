"""Folded characters and their n-grams: the alphabet in which ordinary text is counted.

Characters fold into 64 classes of 6 bits: letters without case, one class for all digits (numbers are
no evidence), the ASCII marks, one for the rest. Four of them are a number below 2**24, so the set of
common 4-grams is exact: 137 KB in the file, a table of 16 MiB shared by all answers of a process.
"""

import lzma
from functools import cache
from importlib.resources import files

import numpy as np
import numpy.typing as npt

Folded = npt.NDArray[np.uint8]
Codes = npt.NDArray[np.uint32]
Mask = npt.NDArray[np.bool_]

CLASS_BITS = 6
CLASSES = 1 << CLASS_BITS
DIGIT = 26
SPACE = 27
NEWLINE = 28
OTHER = 63
ORDER = 4  # characters of a common n-gram
LONG_ORDER = 6
COMMON_FILE = "common_grams.xz"
_MARKS = " \n!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"


def _classes() -> Folded:
    table = np.full(1 << 16, OTHER, np.uint8)
    for offset in range(26):
        table[ord("a") + offset] = table[ord("A") + offset] = offset
    table[ord("0") : ord("9") + 1] = DIGIT
    for offset, mark in enumerate(_MARKS):
        table[ord(mark)] = SPACE + offset
    table[ord("\t")] = SPACE
    table[ord("\r")] = NEWLINE
    return table


_CLASSES = _classes()


def fold(text: str) -> Folded:
    """Return the class of each UTF-16 unit of the text (a character beyond the BMP counts as two)."""
    folded: Folded = _CLASSES[np.frombuffer(text.encode("utf-16-le", "surrogatepass"), dtype="<u2")]
    return folded


def pairs(folded: Folded) -> Codes:
    """Return the 2-gram that ends at each class but the first."""
    wide = folded.astype(np.uint32)
    return (wide[:-1] << np.uint32(CLASS_BITS)) | wide[1:]


def codes(pair: Codes) -> Codes:
    """Return the 4-gram that ends at each pair but the first two; exact, below 2**24."""
    return (pair[:-2] << np.uint32(2 * CLASS_BITS)) | pair[2:]


def long_codes(pair: Codes, code: Codes) -> Codes:
    """Return a 32-bit hash of the 6-gram that ends at each pair but the first four."""
    return code[2:] * np.uint32(0x9E3779B1) + pair[:-4] * np.uint32(0x85EBCA6B)


@cache
def common_table() -> Mask:
    """Return, by code, which 4-grams occur in ordinary code and prose."""
    packed = files("detectors.text.tables").joinpath(COMMON_FILE).read_bytes()
    bits = np.frombuffer(lzma.decompress(packed), np.uint8)
    return np.unpackbits(bits, bitorder="little").view(np.bool_)
