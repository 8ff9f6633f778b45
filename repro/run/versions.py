"""What a run depends on beside its scenario and seed: versions, code, machine, sessions."""

import hashlib
from collections.abc import Sequence
from importlib.metadata import version

import msgspec

from repro.schedule import token
from repro.trace.format import Session


def versions() -> dict[str, str]:
    """Return the versions that a run depends on."""
    names = ("glm5-repro", "torch", "numpy", "tokenizers")
    return {name: version(name) for name in names} | {"machine": token.machine_class(), "code": token.code_hash().hex()}


def hash_of(sessions: Sequence[Session]) -> str:
    """Return a digest that tells whether a trace file has changed since."""
    total = hashlib.sha256()
    for session in sessions:
        total.update(msgspec.json.encode(session))
    return total.hexdigest()[:16]
