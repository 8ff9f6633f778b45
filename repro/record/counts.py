"""What the requests of a run add up to: pure functions of the records, for its verdict and for its report."""

from collections.abc import Sequence

import msgspec

from repro.record.requests import WHOLE, RequestRecord


class Funnel(msgspec.Struct, frozen=True):
    """How many requests reached each stage, from all that were sent to those that a user sees fail."""

    requests: int = 0
    raced: int = 0
    corrupted: int = 0
    poisoned: int = 0
    diverged: int = 0
    acceptance: int = 0
    visible: int = 0
    model_own: int = 0  # requests with a text finding that the clean decode has too

    @property
    def convicted(self) -> bool:
        """Return whether any request is past the first stage."""
        return any(getattr(self, name) for name in self.__struct_fields__ if name != "requests")


class Compared(msgspec.Struct, frozen=True):
    """Answers that were asked for again where nothing disturbs them."""

    compared: int = 0
    suspects: int = 0
    sample: int = 0  # compared ones that no detector suspects
    differing: int = 0


class ContextsCut(msgspec.Struct, frozen=True):
    """Histories that were shortened to fit the model's limit."""

    requests: int = 0  # sent with a shortened history
    sessions: int = 0
    turns: int = 0  # dropped, each counted once however many requests went without it
    characters: int = 0
    limit_tokens: int = 0  # 0 where the record does not say


class Retries(msgspec.Struct, frozen=True):
    """What became of answers that a detector convicted in their stream, as the online detectors saw it."""

    aborted_retried: int = 0  # given up and asked for again
    retried_clean: int = 0
    retried_convicted: int = 0  # again
    retried_unanswered: int = 0


def funnel_of(records: Sequence[RequestRecord]) -> Funnel:
    """Return how many requests reached each stage."""
    return Funnel(
        requests=len(records),
        raced=sum(record.raced for record in records),
        corrupted=sum(record.corrupted for record in records),
        poisoned=sum(record.poisoned for record in records),
        diverged=sum(record.oracle == "diverged" for record in records),
        acceptance=sum(record.acceptance for record in records),
        visible=sum(record.visible for record in records),
        model_own=sum(record.model_own for record in records),
    )


def compared_of(records: Sequence[RequestRecord]) -> Compared:
    """Return how many answers were asked for again, undisturbed, and how many came out different."""
    again = [record for record in records if record.oracle]
    suspects = sum(record.suspect for record in again)
    return Compared(len(again), suspects, len(again) - suspects, sum(record.oracle != "same" for record in again))


def contexts_cut_of(records: Sequence[RequestRecord], limit_tokens: int) -> ContextsCut:
    """Return how far histories were shortened to fit into `limit_tokens`."""
    cut = [record for record in records if record.dropped_turns or record.dropped_characters]
    turns: dict[str, int] = {}
    characters: dict[str, int] = {}
    for record in cut:  # a record counts what its session has lost so far
        turns[record.session] = max(turns.get(record.session, 0), record.dropped_turns)
        characters[record.session] = max(characters.get(record.session, 0), record.dropped_characters)
    return ContextsCut(len(cut), len(turns), sum(turns.values()), sum(characters.values()), limit_tokens)


def retries_of(records: Sequence[RequestRecord]) -> Retries:
    """Return what became of answers that were given up: the last retry of each counts."""
    last = {record.retry_of: record for record in records if record.retry_of}
    convicted = sum(bool(record.detectors) for record in last.values())
    clean = sum(record.finish in WHOLE and not record.detectors for record in last.values())
    return Retries(len(last), clean, convicted, len(last) - clean - convicted)


def session_hits(records: Sequence[RequestRecord], *, blind: bool) -> tuple[tuple[int, int], ...]:
    """Return of each session how many requests went wrong, and how many there are.

    A `blind` target tells no bytes: there an answer that differs, or that a text detector convicts, is wrong.
    """
    sessions: dict[str, tuple[int, int]] = {}
    for record in records:
        bytes_wrong = record.corrupted or record.poisoned
        answer_wrong = record.oracle == "diverged" or record.visible
        hit, of = sessions.get(record.session, (0, 0))
        sessions[record.session] = hit + (answer_wrong if blind else bytes_wrong), of + 1
    return tuple(sessions.values())
