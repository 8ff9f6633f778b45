"""Records without prompts and answers, for servers whose texts must not be kept.

Everything that the verdict rests on stays: counts, times, places, scores, causes. A text becomes its length. Token ids
go, because they spell the text. Of an error only its kind stays, because servers quote the prompts.
"""

from typing import TypeVar

import msgspec

from repro.record.checks import Check
from repro.record.requests import RequestRecord

Finding = TypeVar("Finding", bound=msgspec.Struct)

IDENTIFYING = ("session",)  # texts of a finding's evidence that are names, not contents


def redacted_text(text: str) -> str:
    """Return what stands for a text."""
    return f"[redacted: {len(text)} characters]" if text else ""


def redacted_error(error: str) -> str:
    """Return an error's kind, which stands before its first colon, without the server's words behind it."""
    kind, colon, words = error.partition(":")
    return f"{kind}{colon} {redacted_text(words.strip())}" if colon else error


def redacted_request(record: RequestRecord) -> RequestRecord:
    """Return a copy of a request without prompt, answer, and words of the server."""
    return msgspec.structs.replace(
        record,
        error=redacted_error(record.error),
        text=redacted_text(record.text),
        expected=redacted_text(record.expected),
        clean_text=redacted_text(record.clean_text),
        tokens=[],
        clean_tokens=[],
    )


def redacted_check(check: Check) -> Check:
    """Return a copy of a check whose reasons, which a verdict may quote, hold no words of the server."""
    return msgspec.structs.replace(
        check, rerun_why=redacted_error(check.rerun_why), surprisal_why=redacted_error(check.surprisal_why)
    )


def redacted_finding(finding: Finding) -> Finding:
    """Return a copy of a finding whose claim is its cause, and whose evidence holds no text."""
    evidence = _redacted(getattr(finding, "evidence", {}))
    return msgspec.structs.replace(finding, claim=getattr(finding, "signature", ""), evidence=evidence)


def _redacted(value: object) -> object:
    """Return evidence without its texts; numbers stay, but lists of whole ones may be token ids."""
    if isinstance(value, str):
        return redacted_text(value)
    if isinstance(value, msgspec.Struct):
        fields = msgspec.structs.asdict(value)
        texts_out = {name: _redacted(each) for name, each in fields.items() if name not in IDENTIFYING}
        return msgspec.structs.replace(value, **texts_out)
    if isinstance(value, dict):
        return {key: _redacted(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        ids = value and all(isinstance(each, int) for each in value)
        return f"[redacted: {len(value)} ids]" if ids else [_redacted(each) for each in value]
    return value
