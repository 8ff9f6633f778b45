"""Cuts a stream of text deltas into blocks of fixed size, so that no verdict depends on the chunking."""


class Blocks:
    """Collects deltas; `feed` returns the blocks that are full, `waiting` is the incomplete rest."""

    def __init__(self, size_chars: int) -> None:
        self._size_chars = size_chars
        self._parts: list[str] = []
        self._missing = size_chars

    @property
    def waiting(self) -> str:
        """Return the text that fills no block yet."""
        return "".join(self._parts)

    def feed(self, text: str) -> list[str]:
        """Take the next delta; return the blocks that it completes, mostly none."""
        self._parts.append(text)
        self._missing -= len(text)
        if self._missing > 0:
            return []
        text, size = self.waiting, self._size_chars
        full = len(text) - len(text) % size
        self._parts = [text[full:]]
        self._missing = size - (len(text) - full)
        return [text[start : start + size] for start in range(0, full, size)]

    def end(self) -> str:
        """Return the incomplete rest, and forget it."""
        rest, self._parts = self.waiting, []
        return rest
