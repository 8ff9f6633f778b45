"""Events as JSON lines, and the fingerprint of a run.

One line is one event: `{"e": "op", "stream": "load", ...}`, the tag in `e` names the struct of
`repro.base.probe`. Times are written as the shortest decimal that reads back to the same double, so
a line read and written again is the same line.
"""

import hashlib
import math
from collections.abc import Iterable
from typing import Any, Protocol, TypeVar

import msgspec

from repro.base.errors import RecordError
from repro.base.probe import AnyEvent, Burst, Event, Op, Tokens

Line = TypeVar("Line")

UNHASHED_BYTES = 32 * 2**10

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[AnyEvent] = msgspec.json.Decoder(AnyEvent)


def encode_line(value: object) -> bytes:
    """Return an event, request or finding as one JSON line, without its newline.

    Lone surrogates, that a broken server can send, become visible escapes.
    """
    try:
        return _encoder.encode(value)
    except UnicodeEncodeError:
        return _encoder.encode(_escape_surrogates(msgspec.to_builtins(value)))


def _escape_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, list | tuple):
        return [_escape_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {_escape_surrogates(key): _escape_surrogates(item) for key, item in value.items()}
    return value


def decode_event(line: bytes) -> AnyEvent:
    """Return the event of one line. Raises RecordError for a line that is none."""
    try:
        return decode_line(line, _decoder)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RecordError(f"no event: {error}: {line[:80]!r}") from error


def decode_line(line: bytes, decoder: msgspec.json.Decoder[Line]) -> Line:
    """Return the struct of one line; a null where it wants a number is NaN. Raises msgspec.DecodeError.

    JSON has no NaN, so msgspec writes null. A corrupted cache can make a log-probability NaN, and just that run must
    stay readable.
    """
    try:
        return decoder.decode(line)
    except msgspec.ValidationError:
        value: Line = msgspec.convert(_null_to_nan(msgspec.json.decode(line)), decoder.type)
        return value


def _null_to_nan(value: Any) -> Any:
    """Return JSON data with every null as NaN; for structs without optional fields."""
    if value is None:
        return math.nan
    if isinstance(value, list):
        return [_null_to_nan(item) for item in value]
    if isinstance(value, dict):
        return {key: _null_to_nan(item) for key, item in value.items()}
    return value


# Between these two, a line has what the fingerprint leaves out: source lines, log-probabilities. JSON escapes a quote
# within a string, so no value can hold either.
LEFT_OUT: dict[type[Event], tuple[bytes, bytes]] = {
    Op: (b'"site":"', b'","host":'),
    Burst: (b'"sites":[', b'],"parts":'),
    Tokens: (b'"logprobs":[', b'],"at_us":'),
}


def canonical(event: Event) -> bytes:
    """Return what the fingerprint takes of an event: its line without source lines and log-probabilities."""
    return _canonical(event, encode_line(event))


def _canonical(event: Event, line: bytes) -> bytes:
    left_out = LEFT_OUT.get(type(event))
    if left_out is None:
        return line
    before, behind = left_out
    start = line.index(before) + len(before)
    return line[:start] + line[line.index(behind, start) :]


class Found(Protocol):
    """What the fingerprint takes of a finding; `detectors.base.Finding` has it."""

    @property
    def detector(self) -> str: ...
    @property
    def signature(self) -> str: ...
    @property
    def request(self) -> str: ...
    @property
    def at_us(self) -> float: ...
    @property
    def count(self) -> int: ...


class Fingerprint:
    """SHA-256 over the events and findings of a run, in order.

    Two things of an event stay out: the source line that enqueued an operation, so that a comment
    added above it changes nothing, and log-probabilities, whose last bits depend on the processor.
    Of a finding only what identifies it goes in, not its prose.
    """

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._unhashed = bytearray()  # many lines at once: a call for each costs more than the hash of a short line

    def add(self, event: Event) -> None:
        """Take the next event."""
        self.add_line(event, encode_line(event))

    def add_line(self, event: Event, line: bytes) -> None:
        """Take the next event, whose line has been encoded already."""
        self._unhashed += _canonical(event, line)
        self._unhashed += b"\n"
        if len(self._unhashed) > UNHASHED_BYTES:
            self._hash_all()

    def add_finding(self, finding: Found) -> None:
        """Take the next finding."""
        key = ("finding", finding.detector, finding.signature, finding.request, finding.at_us, finding.count)
        self._unhashed += encode_line(key) + b"\n"

    def hexdigest(self) -> str:
        """Return the fingerprint of all that was taken so far, 64 hexadecimal digits."""
        self._hash_all()
        return self._hash.hexdigest()

    def _hash_all(self) -> None:
        unhashed, self._unhashed = self._unhashed, bytearray()
        self._hash.update(unhashed)


def fingerprint_of(events: Iterable[Event], findings: Iterable[Found] = ()) -> str:
    """Return the fingerprint of a recorded run; equal to the one made while it ran."""
    fingerprint = Fingerprint()
    for event in events:
        fingerprint.add(event)
    for finding in findings:
        fingerprint.add_finding(finding)
    return fingerprint.hexdigest()
