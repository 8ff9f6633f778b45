"""Cuts a stream of text deltas into blocks of fixed size, so that no verdict depends on the chunking."""


def whole_blocks(parts: list[str], size_chars: int) -> tuple[list[str], list[str]]:
    """Return the full blocks of the joined parts, and what is left for the next one."""
    text = "".join(parts)
    full = len(text) - len(text) % size_chars
    rest = text[full:]
    return [text[start : start + size_chars] for start in range(0, full, size_chars)], [rest] if rest else []
