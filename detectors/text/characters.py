"""Which characters no healthy answer holds: broken ones, and rare ones.

Broken: the replacement character, control characters, UTF-8 read as Latin-1 or cp1252, letters of
unrelated scripts side by side. Rare: private use, unassigned, surrogates, control, unusual planes.
"""

import re
import unicodedata
from functools import lru_cache

# Tab, line feed, form feed and carriage return are text; escape and backspace come with terminals.
CONTROL = re.compile("[\x00-\x07\x0b\x0e-\x1a\x1c-\x1f\x7f-\x9f]")
REPLACEMENT = "\ufffd"
# Runs that may be UTF-8 read in an eight-bit code: its upper half, in Latin-1 and in cp1252.
_CP1252_MARKS = "\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2013-\u203a\u20ac\u2122"
_EIGHT_BIT = re.compile(f"[\u0080-\u00ff{_CP1252_MARKS}]{{2,}}")
_UNASSIGNED = frozenset(("Cc", "Cn", "Co", "Cs"))
_PICTURES = range(0x1F000, 0x20000)  # emoji and game symbols
_MATHEMATICAL = range(0x1D400, 0x1D800)
_TEXT_CONTROLS = frozenset("\t\n\f\r\b\x1b")
# Written without a space between them, or mixed in formulas.
_NEIGHBOURS = {frozenset(pair) for pair in (("LATIN", "EAST ASIAN"), ("LATIN", "GREEK"), ("LATIN", "HANGUL"))}
_EAST_ASIAN = frozenset(("CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "BOPOMOFO", "IDEOGRAPHIC", "FULLWIDTH"))


def mojibake(text: str) -> list[str]:
    """Return the characters that were read in an eight-bit code, each as it stands in the text."""
    found = []
    for run in _EIGHT_BIT.findall(text):
        for code in ("cp1252", "latin-1"):
            sequences = _as_utf8(run, code)
            if sequences:
                found += sequences
                break
    return found


def script_jumps(text: str) -> int:
    """Return how often two letters of unrelated scripts stand side by side."""
    jumps, before = 0, ""
    for character in text:
        family = script(character)
        jumps += bool(before and family and before != family and frozenset((before, family)) not in _NEIGHBOURS)
        before = family
    return jumps


@lru_cache(maxsize=1 << 14)
def script(character: str) -> str:
    """Return the script that a letter belongs to; empty for what is no letter."""
    if not character.isalpha():
        return ""
    family = unicodedata.name(character, "UNNAMED").split()[0]
    return "EAST ASIAN" if family in _EAST_ASIAN else family


@lru_cache(maxsize=1 << 14)
def is_rare(character: str) -> bool:
    """Return whether the character is control, private, unassigned or of an unusual plane."""
    if character in _TEXT_CONTROLS:
        return False
    if unicodedata.category(character) in _UNASSIGNED:
        return True
    code = ord(character)
    return code > 0xFFFF and code not in _PICTURES and code not in _MATHEMATICAL


def _as_utf8(run: str, code: str) -> list[str]:
    try:
        letters = run.encode(code).decode("utf-8", "ignore")
    except UnicodeEncodeError:
        return []
    return [letter.encode("utf-8").decode(code, "replace") for letter in letters]
