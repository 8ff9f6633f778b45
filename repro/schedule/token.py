"""The token: at most 64 characters that bring a run back on another machine.

    version 1 | flags 1 | scenario 5 | code 4 | machine 2 | fingerprint 8 | payload | check 3     (bytes)

as base64url without padding. It names its inputs by hash: a token of other code, or of another type
of processor, is recognised as such instead of failing without a reason. So is one that was copied
with a slip: its check does not fit. The payload says what was run (`payload`); one that is too long
stays in the run's folder, and the token holds its hash instead and says so.
"""

import base64
import binascii
import hashlib
import platform
from functools import lru_cache
from importlib.metadata import version
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Self

import msgspec

from repro.base.errors import UsageError
from repro.schedule.overrides import Overrides
from repro.schedule.payload import pack, unpack
from repro.schedule.schedule import Schedule

VERSION = 3
TOKEN_CHARACTERS_MAX = 64
FINGERPRINT_DIGITS = 16
_CONTROL, _NO_FAULTS, _ELSEWHERE = 1, 2, 4
_PAYLOAD_AT = 21  # bytes before the payload
_PAYLOAD_BYTES_MAX = TOKEN_CHARACTERS_MAX * 6 // 8 - _PAYLOAD_AT - 3
_PAYLOAD_HASH_BYTES = 8
_CHECK_BYTES = 3
_CODE_PACKAGES = ("repro", "detectors")
_CODE_SUFFIXES = (".py", ".safetensors", ".json", ".jinja", ".xz")


class Token(msgspec.Struct, frozen=True):
    """The content of a token. With `elsewhere` the token itself has no seed, schedule and overrides."""

    scenario: bytes  # first bytes of the scenario text's SHA-256
    control: bool
    no_faults: bool
    fingerprint: str  # first FINGERPRINT_DIGITS hexadecimal digits
    code: bytes
    machine: bytes
    seed: int = 0
    schedule: Schedule = Schedule()
    overrides: Overrides = Overrides()
    elsewhere: bool = False  # the payload is in the run's folder

    def encode(self) -> str:
        """Return the token's text."""
        payload = pack(self.seed, self.schedule, self.overrides)
        elsewhere = len(payload) > _PAYLOAD_BYTES_MAX
        if elsewhere:
            payload = hashlib.sha256(payload).digest()[:_PAYLOAD_HASH_BYTES]
        flags = _CONTROL * self.control | _NO_FAULTS * self.no_faults | _ELSEWHERE * elsewhere
        packed = bytes((VERSION, flags)) + self.scenario + self.code + self.machine
        packed += bytes.fromhex(self.fingerprint) + payload
        text = base64.urlsafe_b64encode(packed + _check(packed)).rstrip(b"=").decode()
        assert len(text) <= TOKEN_CHARACTERS_MAX
        return text

    @classmethod
    def of_body(cls, body: bytes) -> Self:
        """Return what the bytes before the check say; raises ValueError for what no token of this version says."""
        flags, payload = body[1], body[_PAYLOAD_AT:]
        if flags > (_CONTROL | _NO_FAULTS | _ELSEWHERE):
            raise ValueError("flags that this version does not know")
        elsewhere = bool(flags & _ELSEWHERE)
        seed, schedule, overrides = (0, Schedule(), Overrides()) if elsewhere else unpack(payload)
        return cls(
            scenario=body[2:7],
            control=bool(flags & _CONTROL),
            no_faults=bool(flags & _NO_FAULTS),
            fingerprint=body[13:_PAYLOAD_AT].hex(),
            code=body[7:11],
            machine=body[11:13],
            seed=seed,
            schedule=schedule,
            overrides=overrides,
            elsewhere=elsewhere,
        )


def decode(text: str) -> Token:
    """Return what a token's text says; raises UsageError for anything else."""
    text = text.strip()
    named = f'"{text[:TOKEN_CHARACTERS_MAX]}{"..." if len(text) > TOKEN_CHARACTERS_MAX else ""}"'
    try:
        packed = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise UsageError(f"{named} is neither a token nor the folder of a run; copy all of its characters") from error
    body, check = packed[:-_CHECK_BYTES], packed[-_CHECK_BYTES:]
    if len(body) <= _PAYLOAD_AT or len(text) > TOKEN_CHARACTERS_MAX or check != _check(body):
        raise UsageError(f"{named} is no whole token; copy all of its characters, and only them")
    if body[0] != VERSION:
        raise UsageError(
            f"{named} is a token of version {body[0]}, this package reads version {VERSION}; use the one that made it"
        )
    try:
        return Token.of_body(body)
    except ValueError as error:
        raise UsageError(f"{named} is not of this package's making ({error}); use the one that made it") from error


def _check(packed: bytes) -> bytes:
    return hashlib.sha256(packed).digest()[:_CHECK_BYTES]


def scenario_hash(source: str) -> bytes:
    """Return how a token names a scenario."""
    return hashlib.sha256(source.encode()).digest()[:5]


@lru_cache(maxsize=1)
def code_hash() -> bytes:
    """Return how a token names the code and the checkpoint that it ran on."""
    total = hashlib.sha256()
    for package in _CODE_PACKAGES:
        _hash_tree(files(package), package, total)
    return total.digest()[:4]


def machine_hash() -> bytes:
    """Return how a token names the type of processor: floating point may differ across types."""
    return hashlib.sha256(machine_class().encode()).digest()[:2]


def machine_class() -> str:
    """Return the type of processor, the widest arithmetic that it has, and the library that uses it."""
    return f"{platform.machine()} {_widest_arithmetic()} torch {version('torch')}"


@lru_cache(maxsize=1)
def _widest_arithmetic() -> str:
    """Return the widest vectors of this processor, as Linux names them; "" where there is no /proc/cpuinfo."""
    information = Path("/proc/cpuinfo")
    flags = set(information.read_text().split()) if information.exists() else set()
    return next((name for name in ("avx512f", "avx2", "asimd") if name in flags), "")


def _hash_tree(folder: Traversable, name: str, total: "hashlib._Hash") -> None:
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        path = f"{name}/{entry.name}"
        if entry.is_dir() and entry.name != "__pycache__":
            _hash_tree(entry, path, total)
        elif entry.name.endswith(_CODE_SUFFIXES):
            total.update(f"{path}\0".encode() + hashlib.sha256(entry.read_bytes()).digest())
