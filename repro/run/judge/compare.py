"""Decodes answers again on a clean cache and writes what came out into their records."""

from collections.abc import Callable, Mapping, Sequence

from detectors.answers.divergence import Compared
from repro.base.rng import bits64
from repro.record.requests import RequestRecord
from repro.run.judge.clean_decode import Clean, CleanDecoder
from repro.run.limits import LimitWatch
from repro.serve.types import GenerateRequest

Decode = Callable[[Sequence[int]], str]


def to_decode(records: Sequence[RequestRecord], sample: int, seed: int) -> list[RequestRecord]:
    """Return every suspect and a seeded sample of the rest, in the order of their sessions."""
    answered = [record for record in records if record.tokens]
    suspects = [record for record in answered if record.suspect]
    rest = [record for record in answered if not record.suspect]
    rest.sort(key=lambda record: bits64(seed, "oracle", record.request))
    return sorted(suspects + rest[:sample], key=lambda record: (record.session, record.turn, record.attempt))


def compare(
    records: Sequence[RequestRecord],
    requests: Mapping[str, GenerateRequest],
    decoder: CleanDecoder,
    text: Decode,
    limits: LimitWatch,
    done: Callable[[int, int], None] = lambda number, total: None,
) -> list[Compared]:
    """Decode these answers again, alone and clean; fills the oracle's fields of each record.

    A limit or a Ctrl-C ends it; what was decoded by then is returned.
    """
    compared: list[Compared] = []
    try:
        for record in records:
            if limits.look():
                break
            compared.append(_compare(record, decoder.check(requests[record.request], tuple(record.tokens)), text))
            done(len(compared), len(records))
    except KeyboardInterrupt:
        limits.interrupt()
    return compared


def _compare(record: RequestRecord, clean: Clean, text: Decode) -> Compared:
    record.first_difference = clean.first_difference
    record.logit_gap = clean.logit_gap
    record.clean_tokens = list(clean.tokens)
    record.clean_text = text(clean.tokens)
    record.oracle = "diverged" if clean.first_difference >= 0 else "same"
    return Compared(
        record.request,
        record.finished_us,
        clean.first_difference,
        clean.logit_gap,
        record.text,
        record.clean_text,
    )
