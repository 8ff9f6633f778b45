"""Server-sent events out of bytes that arrive in any pieces."""

EVENT_BYTES_MAX = 16 * 2**20  # an event longer than this is no token stream


class MalformedStreamError(Exception):
    """The body is no stream of events."""


class EventParser:
    """Cuts a byte stream into the data of its events.

    Works on bytes, so a character that is split between two chunks is whole again before anyone
    decodes it. Comments and other fields than `data` are skipped, as the standard says.
    """

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the data of the events that this chunk completes. Raises MalformedStreamError."""
        if not self._rest and chunk.startswith(b"data: ") and chunk.find(b"\n") == len(chunk) - 2 and chunk[-1] == 10:
            return [chunk[6:-2]]  # one whole event: what token streams are made of
        buffered = self._rest + chunk if self._rest else chunk
        if b"\r" in buffered:  # JSON escapes carriage returns, so a raw one can only end a line
            held_back = b"\r" if buffered.endswith(b"\r") else b""  # the \n of this line end may be in the next chunk
            buffered = buffered.removesuffix(b"\r").replace(b"\r\n", b"\n").replace(b"\r", b"\n") + held_back
        *blocks, self._rest = buffered.split(b"\n\n")
        if len(self._rest) > EVENT_BYTES_MAX:
            raise MalformedStreamError(f"an event is longer than {EVENT_BYTES_MAX} bytes")
        return [data for block in blocks if (data := _data(block))]

    def end(self) -> list[bytes]:
        """Return the last event when the stream ended without its blank line."""
        data = _data(self._rest.rstrip(b"\r"))
        self._rest = b""
        return [data] if data else []


def _data(block: bytes) -> bytes:
    """Return the data lines of one event, joined."""
    lines = [line[5:].removeprefix(b" ") for line in block.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines)
