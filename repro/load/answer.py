"""An answer as it grows."""

import json
from typing import Literal

import msgspec

from repro.load.wire import CallPiece, Counts, Piece
from repro.record.requests import SpecCounts

# refused: no connection. busy: 429 or 503. rejected: any other 4xx. server: 5xx, or an error event.
# died: the connection broke. malformed: no readable stream. client: a bound of our own.
ErrorKind = Literal["", "refused", "busy", "rejected", "server", "died", "timeout", "malformed", "client"]
RETRIABLE: tuple[ErrorKind, ...] = ("refused", "busy", "server", "died", "timeout")
CALLS_MAX = 256


class AnswerCall(msgspec.Struct):
    """A tool call of the answer; arguments as the model's own JSON text."""

    id: str = ""
    name: str = ""
    arguments: str = ""


class Answer(msgspec.Struct):
    """What has arrived of an answer, and when, in seconds on the loop's clock (-1: not yet)."""

    contents: list[str] = msgspec.field(default_factory=list)  # the parts that go into the history
    calls: list[AnswerCall] = msgspec.field(default_factory=list)
    parts: list[str] = msgspec.field(default_factory=list)  # everything the model said, in order
    finish: str = ""  # the server's word, or abort
    error_kind: ErrorKind = ""
    error: str = ""
    counts: Counts | None = None
    spec: SpecCounts | None = None  # None where the server does not count its drafts
    pieces: int = 0  # events that carried text, calls or tokens
    tokens: list[int] = msgspec.field(
        default_factory=list
    )  # empty where the server sends no ids; SGLang's /generate does
    words: list[str] = msgspec.field(default_factory=list)  # texts of tokens, beside OpenAI's log-probabilities
    logprobs: list[float] = msgspec.field(default_factory=list)
    sent_s: float = -1.0
    first_s: float = -1.0
    last_s: float = -1.0
    finished_s: float = -1.0

    @property
    def text(self) -> str:
        """Everything the model said, tool calls rendered, as one text."""
        return "".join(self.parts)

    @property
    def content(self) -> str:
        """The message's text, without reasoning and calls."""
        return "".join(self.contents)

    @property
    def tokens_seen(self) -> int:
        """Return the number of tokens so far: the stream's ids, else one for each piece."""
        return len(self.tokens) or self.pieces

    def grow(self, piece: Piece) -> bool:
        """Take what an event adds; return whether it came from the model, not only from the server."""
        if piece.calls or piece.reasoning:
            self.parts.append(piece.reasoning + piece.text + self._called(piece.calls))
        else:
            self.parts.append(piece.text)
        self.contents.append(piece.text)
        self.finish = piece.finish or self.finish
        self.counts = piece.counts or self.counts
        self.spec = piece.spec or self.spec
        if piece.tokens or piece.logprobs:
            self.tokens += piece.tokens
            self.logprobs += piece.logprobs
            self.words += piece.words
        if piece.text or piece.calls or piece.reasoning or piece.tokens:
            self.pieces += 1
            return True
        return False

    def fail(self, kind: ErrorKind, text: str) -> None:
        """The answer ends here, with an error."""
        self.finish, self.error_kind, self.error = "error", kind, text

    def _called(self, pieces: tuple[CallPiece, ...]) -> str:
        """Add pieces of calls and return them as text."""
        text = ""
        for piece in pieces:
            if piece.name or piece.index >= len(self.calls):
                if len(self.calls) >= CALLS_MAX:
                    continue
                self.calls.append(AnswerCall(id=piece.id, name=piece.name))
                text += f"\n[call {piece.name}] "
            call = self.calls[min(piece.index, len(self.calls) - 1)]
            call.arguments += piece.arguments
            text += piece.arguments
        return text


def last_part(answer: Answer) -> str:
    """Return what the latest event added to the text."""
    return answer.parts[-1] if answer.parts else ""


def arguments_of(call: AnswerCall) -> str:
    """Return the call's arguments as a JSON object, also when the model broke off in the middle."""
    try:
        parsed = json.loads(call.arguments or "{}")
    except ValueError:
        parsed = None
    return call.arguments if isinstance(parsed, dict) else json.dumps({"arguments": call.arguments})
