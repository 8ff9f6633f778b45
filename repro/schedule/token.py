"""The token: at most 64 characters that bring a run back on another machine.

    version 1 | flags 1 | scenario 6 | code 6 | machine 3 | fingerprint 10 | seed 1-8 | check 3     (bytes)

as base64url without padding. It names its inputs by hash: a token of other code, or of another type
of processor, is recognised as such instead of failing without a reason. So is one that was copied
with a slip: its check does not fit.
"""

import base64
import binascii
import hashlib
import platform
from functools import lru_cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Literal

import msgspec
import torch

from repro.base.errors import UsageError

VERSION = 2
TOKEN_CHARACTERS_MAX = 64
FINGERPRINT_DIGITS = 20
SEED_MAX = 2**63 - 1
Picker = Literal["timed", "random"]
_PICKERS: tuple[Picker, ...] = ("timed", "random")
_CONTROL, _NO_FAULTS = 1, 2
_PICKER_SHIFT = 2
_SEED_AT = 27  # bytes before the seed
_CHECK_BYTES = 3
_CODE_PACKAGES = ("repro", "detectors")
_CODE_SUFFIXES = (".py", ".safetensors", ".json", ".jinja", ".xz")


class Token(msgspec.Struct, frozen=True):
    """What a token says."""

    scenario: bytes  # first 6 bytes of the scenario text's SHA-256
    seed: int
    control: bool
    no_faults: bool
    picker: Picker
    fingerprint: str  # first FINGERPRINT_DIGITS hexadecimal digits
    code: bytes
    machine: bytes

    def encode(self) -> str:
        """Return the token's text."""
        flags = _CONTROL * self.control | _NO_FAULTS * self.no_faults
        flags |= _PICKERS.index(self.picker) << _PICKER_SHIFT
        seed = self.seed.to_bytes(max(1, (self.seed.bit_length() + 7) // 8), "big")
        packed = bytes((VERSION, flags)) + self.scenario + self.code + self.machine
        packed += bytes.fromhex(self.fingerprint) + seed
        text = base64.urlsafe_b64encode(packed + _check(packed)).rstrip(b"=").decode()
        assert len(text) <= TOKEN_CHARACTERS_MAX
        return text


def decode(text: str) -> Token:
    """Return what a token's text says; raises UsageError for anything else."""
    text = text.strip()
    told = f'"{text[:TOKEN_CHARACTERS_MAX]}{"..." if len(text) > TOKEN_CHARACTERS_MAX else ""}"'
    try:
        packed = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise UsageError(f"{told} is neither a token nor the folder of a run; copy all of its characters") from error
    body, check = packed[:-_CHECK_BYTES], packed[-_CHECK_BYTES:]
    if len(body) <= _SEED_AT or len(text) > TOKEN_CHARACTERS_MAX or check != _check(body):
        raise UsageError(f"{told} is no whole token; copy all of its characters, and only them")
    if body[0] != VERSION or body[1] >> _PICKER_SHIFT >= len(_PICKERS):
        raise UsageError(
            f"{told} is a token of version {body[0]}, this package reads version {VERSION}; use the one that made it"
        )
    flags = body[1]
    return Token(
        scenario=body[2:8],
        seed=int.from_bytes(body[_SEED_AT:], "big"),
        control=bool(flags & _CONTROL),
        no_faults=bool(flags & _NO_FAULTS),
        picker=_PICKERS[flags >> _PICKER_SHIFT],
        fingerprint=body[17:_SEED_AT].hex(),
        code=body[8:14],
        machine=body[14:17],
    )


def _check(packed: bytes) -> bytes:
    return hashlib.sha256(packed).digest()[:_CHECK_BYTES]


def scenario_hash(source: str) -> bytes:
    """Return how a token names a scenario."""
    return hashlib.sha256(source.encode()).digest()[:6]


@lru_cache(maxsize=1)
def code_hash() -> bytes:
    """Return how a token names the code and the checkpoint that it ran on."""
    total = hashlib.sha256()
    for package in _CODE_PACKAGES:
        _hash_tree(files(package), package, total)
    return total.digest()[:6]


def machine_hash() -> bytes:
    """Return how a token names the type of processor: floating point may differ across types."""
    return hashlib.sha256(machine_class().encode()).digest()[:3]


def machine_class() -> str:
    """Return the type of processor and the arithmetic library's choice for it."""
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} torch {torch.__version__}"


def _hash_tree(folder: Traversable, name: str, total: "hashlib._Hash") -> None:
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        path = f"{name}/{entry.name}"
        if entry.is_dir() and entry.name != "__pycache__":
            _hash_tree(entry, path, total)
        elif entry.name.endswith(_CODE_SUFFIXES):
            total.update(f"{path}\0".encode() + hashlib.sha256(entry.read_bytes()).digest())
