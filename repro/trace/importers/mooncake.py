"""Mooncake request traces: JSON Lines with arrival time, lengths and hashes of 512-token prefix blocks.

Every request becomes a session of one turn. Its text is made from its block hashes, so requests that
share leading `hash_ids` share that text, and the prefix cache sees what the production one saw.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from repro.trace.filler import block_text, scaled_span
from repro.trace.format import Message, Session, Turn
from repro.trace.importers.base import Importer, ImportOptions, decode_lines, has_keys

EXPECTED = "a Mooncake request (timestamp in ms, input_length, output_length, hash_ids)"
BLOCK_TOKENS = 512


class Request(msgspec.Struct):
    """One line of the trace."""

    timestamp: float
    input_length: int
    output_length: int
    hash_ids: list[int]


def read(path: Path, options: ImportOptions) -> Iterator[Session]:
    """Yield a session per request, in the file's order."""
    for number, request in decode_lines(path, Request, EXPECTED):
        turn = Turn(
            messages=(Message(role="user", content=_prompt(request, options, f"line/{number}")),),
            max_tokens=max(1, round(request.output_length * options.scale_tokens)),
        )
        yield Session(id=f"{path.name.split('.')[0]}-{number}", turns=(turn,), start_s=request.timestamp / 1e3)


def _prompt(request: Request, options: ImportOptions, request_key: str) -> str:
    """Return the prompt's text, block by block; no other request shares the text that no hash covers."""
    keys = [f"mooncake/{block}" for block in request.hash_ids]
    left = max(1, round(request.input_length * options.scale_tokens))
    parts: list[str] = []
    for index, key in enumerate(keys):
        tokens = min(left, scaled_span(index, BLOCK_TOKENS, options.scale_tokens))
        left -= tokens
        parts.append(block_text(options.seed, key, round(tokens * options.characters_per_token)))
    parts.append(block_text(options.seed, request_key, round(left * options.characters_per_token)))
    return "".join(parts)


def _matches(value: Any) -> bool:
    return has_keys(value, "timestamp", "input_length", "hash_ids")


IMPORTER = Importer(name="mooncake", matches=_matches, read=read, scales=True)
