"""Answers of a model as a reader may safely see them: nothing invisible, nothing active."""

import re

import msgspec

from detectors.base import Finding
from detectors.evidence import Evidence, RerunScore, WrongToken
from repro.record.requests import RequestRecord

PLAIN_CONTROLS = "\n\t"
ANSWER_CHARACTERS_MAX = 4000
BEFORE_CHARACTERS_MAX = 600

_FIRST_WORD = re.compile(r"\s*(\w+|\W)", re.DOTALL)


class Piece(msgspec.Struct, frozen=True):
    """A run of text; `escape` when it stands for a character that cannot be seen."""

    text: str
    escape: bool = False


class Comparison(msgspec.Struct, frozen=True):
    """Two answers from just before the first difference on. `wrong` is about the first wrong token."""

    before: str
    clean: str
    wrong: str
    got: str  # after `wrong`
    cut_before: bool  # `before` does not start at the answer's start
    cut_clean: bool
    cut_got: bool
    equal: bool
    note: str  # the token numbers, where they are known


def visible_text(text: str) -> str:
    """Return the text with every character that cannot be seen as an escape such as \\x00 or \\u202e."""
    if text.isprintable():
        return text
    return "".join(character if _is_seen(character) else escape_of(character) for character in text)


def pieces(text: str) -> list[Piece]:
    """Return the text as runs of seen text and of escapes."""
    found: list[Piece] = []
    seen: list[str] = []
    for character in text:
        if _is_seen(character):
            seen.append(character)
            continue
        if seen:
            found.append(Piece("".join(seen)))
            seen = []
        found.append(Piece(escape_of(character), escape=True))
    if seen:
        found.append(Piece("".join(seen)))
    return found


def _is_seen(character: str) -> bool:
    return character in PLAIN_CONTROLS or character.isprintable()


def escape_of(character: str) -> str:
    """Return \\x1b, \\u200b or \\U000e0001 for a character."""
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def compare(finding: Finding | None, record: RequestRecord | None) -> Comparison | None:
    """Return the answer beside the clean one, or None when either is unknown."""
    evidence = finding.evidence if finding else None
    if isinstance(evidence, WrongToken):
        return difference(evidence.clean, evidence.got, note=_token_note(evidence, record))
    if record is None or not record.oracle or not (record.text or record.clean_text):
        return None
    clean = record.clean_text or (record.text if record.oracle == "same" else "")
    return difference(clean, record.text, note=_token_note(evidence, record))


def difference(clean: str, got: str, *, note: str = "") -> Comparison:
    """Return where two texts part, cut to what fits a page."""
    place = _common_prefix(clean, got)
    start = max(0, place - BEFORE_CHARACTERS_MAX)
    if start:
        line = got.find("\n", start, place)
        start = line + 1 if line >= 0 else start
    match = _FIRST_WORD.match(got, place)
    wrong_end = min(match.end(), place + 40) if match else place
    end = place + ANSWER_CHARACTERS_MAX
    return Comparison(
        before=got[start:place],
        clean=clean[place:end],
        wrong=got[place:wrong_end],
        got=got[wrong_end:end],
        cut_before=start > 0,
        cut_clean=len(clean) > end,
        cut_got=len(got) > end,
        equal=clean == got,
        note=note,
    )


def _common_prefix(first: str, second: str) -> int:
    same, different = 0, min(len(first), len(second)) + 1
    while different - same > 1:  # halving: comparing slices costs no Python per character
        middle = (same + different) // 2
        if first[same:middle] == second[same:middle]:
            same = middle
        else:
            different = middle
    return same


def _token_note(evidence: Evidence | None, record: RequestRecord | None) -> str:
    place, gap = (record.first_difference, record.logit_gap) if record else (-1, 0.0)
    if isinstance(evidence, WrongToken | RerunScore):
        place = evidence.first_difference
    if isinstance(evidence, WrongToken):
        gap = evidence.logit_gap
    if place < 0:
        return ""
    note = f"First wrong token: number {place}"
    if record and place < len(record.tokens) and place < len(record.clean_tokens):
        note += f", id {record.tokens[place]} where the clean decode has {record.clean_tokens[place]}"
    if gap:
        note += f"; there the clean decode's best token leads the next by {gap:.3g} in logits"
    return note + "."
