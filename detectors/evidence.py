"""The evidence of findings: one struct a kind; its fields are the keys of the finding's JSON object.

Reports and searches read these fields. A detector may define a kind of its own in its file, as a subclass of `Kind`.
"""

from collections.abc import Mapping
from contextlib import suppress

import msgspec


class Operation(msgspec.Struct, frozen=True, omit_defaults=True):
    """One side of a race. One that was too old to be remembered has only stream, index and direction."""

    stream: str
    index: int = -1
    name: str = ""
    layer: int | None = None
    step: int | None = None
    site: str | None = None
    enqueued_us: float | None = None
    start_us: float | None = None
    end_us: float | None = None
    write: bool | None = None

    @property
    def label(self) -> str:
        """Return its name, or its number where the name is unknown."""
        return self.name or f"operation {self.index}"

    @property
    def span_us(self) -> tuple[float, float] | None:
        """Return when it ran, None where that is unknown."""
        return None if self.start_us is None or self.end_us is None else (self.start_us, self.end_us)

    @property
    def verb(self) -> str:
        """Return what it does to the page."""
        return {True: "writes", False: "reads", None: "touches"}[self.write]


class Evidence:
    """Evidence of any kind."""

    __slots__ = ()

    @staticmethod
    def of_record(record: Mapping[str, object]) -> "Evidence":
        """Return recorded evidence as the first kind that its keys and values fit."""
        for kind in Kind.__subclasses__():
            with suppress(msgspec.ValidationError):
                return msgspec.convert(record, kind)
        return OtherEvidence(record)

    @property
    def operations(self) -> tuple[Operation, ...]:
        """Return the operations that it names."""
        return ()


class OtherEvidence(Evidence, dict[str, object]):
    """Evidence read from a record that is of no kind of this version."""

    __slots__ = ()


NOTHING = OtherEvidence()


class Kind(Evidence, msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The base of every kind. Unknown keys are refused: `of_record` finds the kind of a record by its keys."""


class PagePair(Kind, frozen=True):
    """Two operations that touch one page and that nothing orders."""

    first: Operation  # the one that was recorded first, when it ended
    second: Operation
    page: int  # the lowest one
    pages: int  # how many pages race
    tier: str
    component: str
    layer: int
    missing_edge: str
    inverted: bool  # the one enqueued later began before the other had ended: its bytes are wrong
    requests: tuple[str, ...]
    history: tuple[str, ...]  # the page's last changes of owner

    @property
    def operations(self) -> tuple[Operation, ...]:
        """Return both, by when the host enqueued them; where that is unknown of one, by when they began."""
        both = (self.first, self.second)
        enqueued = all(side.enqueued_us is not None for side in both)
        return tuple(sorted(both, key=lambda side: _or_never(side.enqueued_us if enqueued else side.start_us)))


class PageRead(Kind, frozen=True):
    """An operation that read bytes which are not the expected ones."""

    stream: str
    index: int
    op: str
    site: str
    component: str
    layer: int
    request: str
    tokens: int
    first_position: int
    pages: int  # the number of a page set
    origin: str  # the request that stored the bytes from wrong ones, "" for a read at first hand

    @property
    def operations(self) -> tuple[Operation, ...]:
        """Return the one that read."""
        return (Operation(self.stream, self.index, self.op, layer=self.layer, site=self.site),)


class PageUse(Kind, frozen=True):
    """An operation that touched a page after it was freed, or after it was given to a newer owner."""

    stream: str
    index: int
    op: str
    page: int
    pages: int  # how many pages
    tier: str
    site: str
    request: str
    history: tuple[str, ...]

    @property
    def operations(self) -> tuple[Operation, ...]:
        """Return the one that touched it."""
        return (Operation(self.stream, self.index, self.op, site=self.site),)


class PageChange(Kind, frozen=True):
    """A page that was handed out while owned, or freed twice."""

    page: int
    pages: int  # how many pages
    tier: str
    history: tuple[str, ...]


class WrongToken(Kind, frozen=True):
    """An answer beside the clean one of the same prompt."""

    request: str
    first_difference: int
    logit_gap: float
    got: str
    clean: str


class RerunScore(Kind, frozen=True):
    """An answer beside the one that the server gives alone."""

    score_nats: float
    limit_nats: float
    first_difference: int
    alone: str


class SurprisalScore(Kind, frozen=True):
    """Tokens of an answer that the server finds unlikely on a clean cache."""

    score_nats: float
    limit_nats: float
    start: int  # the worst stretch begins here
    deficits_from: int
    deficits: tuple[float, ...]


class ConfidenceScore(Kind, frozen=True):
    """Tokens of an answer that the server is otherwise sure of on a clean cache."""

    score_nats: float
    limit_nats: float
    start: int  # the worst stretch begins here
    shifts_from: int
    shifts: tuple[float, ...]


class DraftCounts(Kind, frozen=True):
    """How an answer accepted its drafts."""

    value: float
    limit: float | None
    accept_length: float
    accept_rate: float
    window_rates: tuple[float, ...]
    completion_tokens: int
    spec_verify_ct: int
    spec_accept_token_num: int
    spec_draft_token_num: int
    since_tokens: int | msgspec.UnsetType = msgspec.UNSET  # the change began here


class GarbledSpan(Kind, frozen=True):
    """A span of an answer that is no language."""

    end_chars: int
    excerpt: str
    foreign_letters: int
    salad_bits: float


class LoopSpan(Kind, frozen=True):
    """A span of an answer that repeats a unit."""

    unit: str | tuple[int, ...]  # text, or the ids that show none
    period: int
    repeats: float
    span: int
    end_chars: int


class LeakedNonce(Kind, frozen=True):
    """A span of an answer that is part of another session's prompt."""

    session: str
    nonce: str
    excerpt: str


class ControlSpan(Kind, frozen=True):
    """A span of an answer with the spelling of a control token."""

    excerpt: str


class ImpossibleToken(Kind, frozen=True):
    """A token id that no answer can hold."""

    id: int


class SurprisingTokens(Kind, frozen=True):
    """Tokens that the model finds next to impossible."""

    nats: float
    at_token: int


class RareSpan(Kind, frozen=True):
    """A span of an answer with characters that no text holds."""

    count: int
    end_chars: int


def _or_never(us: float | None) -> float:
    return float("inf") if us is None else us
