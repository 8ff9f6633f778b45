"""From findings and counts to one of the verdicts of the command line."""

from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec

from detectors.base import Verdict
from repro.base.verdict_word import VerdictWord
from repro.fault.aftermath import Corruptions
from repro.fault.injector import FaultCounts
from repro.fault.plan import Fault
from repro.load.plan import LoadResult
from repro.record.exercised import Exercised
from repro.record.requests import WHOLE, RequestRecord

GONE = ("refused", "died")  # kinds of errors of a server that isn't there any more
CLIENT = "client"  # our own doing: a bound, or Ctrl-C
ERROR_CHARACTERS_MAX = 300


class Judgement(msgspec.Struct, frozen=True):
    """The verdict's word and the sentences that led to it."""

    word: VerdictWord
    why: tuple[str, ...]


def judge(
    detectors: Sequence[Verdict],
    result: LoadResult,
    records: Sequence[RequestRecord] = (),
    *,
    faults: Sequence[Fault] = (),
    counts: Mapping[str, FaultCounts] | None = None,
    corruptions: Mapping[str, Corruptions] | None = None,
    exercised: Exercised | None = None,
    floors: Mapping[str, int] | None = None,
    cut: str = "",
) -> Judgement:
    """Return the verdict; where several hold: failed, then anomaly, vacuous, inconclusive, clean.

    `cut` says what ended the run early: it can't be vacuous then, since the rest might have met the floors.
    """
    failures = _failures(result, records)
    if failures:
        return Judgement(VerdictWord.FAILED, failures)
    changed = corruptions or {}
    missing = _unanswered(records) + ((f"{cut}; the figures are of what was done",) if cut else ()) + _missed(changed)
    convicted = tuple(_conviction(verdict) for verdict in detectors if verdict.answer == "anomaly")
    if convicted:
        return Judgement(VerdictWord.ANOMALY, convicted + missing)
    empty = _vacuous_faults(faults, counts or {}, changed) + _missed_floors(exercised or Exercised(), floors or {})
    if empty and not cut:
        return Judgement(VerdictWord.VACUOUS, empty + missing)
    unknown = tuple(f"{verdict.detector}: {verdict.why}" for verdict in detectors if verdict.answer == "unknown")
    if unknown or missing:
        return Judgement(VerdictWord.INCONCLUSIVE, missing + unknown)
    return Judgement(VerdictWord.CLEAN, ())


def _conviction(verdict: Verdict) -> str:
    """Return how much a detector found: hundreds of findings of one cause are one bug."""
    count, causes = sum(found.count for found in verdict.findings), len({found.signature for found in verdict.findings})
    of = f"{causes} cause{'s' * (causes > 1)}"
    return f"{verdict.detector}: {count} finding{'s' * (count > 1)} of {of}"


def _failures(result: LoadResult, records: Sequence[RequestRecord]) -> tuple[str, ...]:
    """Return why the target is to blame that the run says nothing."""
    if result.target_lost:
        return (f"the target stopped answering: {result.target_lost}",)
    broken = {kind: count for kind, count in result.errors.items() if kind != CLIENT}
    if broken and not result.answered and not result.aborted:
        told = ", ".join(f"{count} {kind}" for kind, count in broken.items())
        return (f"no request was answered: {told}{_example(records)}",)
    over = [record for record in records if record.finished_us >= 0 and _error_kind(record) != CLIENT]
    last = max(over, key=lambda record: record.finished_us, default=None)
    if last is not None and _error_kind(last) in GONE:
        return (f"the target stopped answering: {last.request}: {last.error}",)
    return ()


def _unanswered(records: Sequence[RequestRecord]) -> tuple[str, ...]:
    """Return how many turns got no answer, retries included, and why."""
    last = {(record.session, record.turn): record for record in records}
    left = [record for record in last.values() if record.finish == "error" and _error_kind(record) != CLIENT]
    if not left:
        whole = [record for record in records if record.finish in WHOLE]
        silent = whole and not any(record.text or record.tokens for record in whole)
        return (f"all {len(whole)} answers are empty: there was nothing to judge",) if silent else ()
    kinds = Counter(map(_error_kind, left))
    told = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    return (f"{len(left)} of {len(last)} turns got no answer: {told}{_example(left)}",)


def _example(records: Sequence[RequestRecord]) -> str:
    first = next((record for record in records if record.error), None)
    return "" if first is None else f"; the first, {first.request}: {first.error[:ERROR_CHARACTERS_MAX]}"


def _error_kind(record: RequestRecord) -> str:
    return record.error.partition(":")[0]


def _missed(corruptions: Mapping[str, Corruptions]) -> tuple[str, ...]:
    """Return which wrong bytes of a fault's making were read, and no detector noticed."""
    return tuple(
        f"{name}: of {each.read} changes that a step read, {each.read - each.detected} were not noticed"
        for name, each in corruptions.items()
        if each.detected < each.read
    )


def _vacuous_faults(
    faults: Sequence[Fault], counts: Mapping[str, FaultCounts], corruptions: Mapping[str, Corruptions]
) -> tuple[str, ...]:
    why = []
    for fault in {fault.name: fault for fault in faults}.values():
        count, changes = counts[fault.name], corruptions.get(fault.name, Corruptions())
        if not count.fired:
            why.append(f"{fault.name} never fired ({count.reached} hits of its point)")
        elif fault.do.timing and not count.reordered:
            why.append(f"{fault.name} fired {count.fired} times and never changed an order")
        elif fault.do.corrupting and not changes.changed:
            why.append(f"{fault.name} fired {count.fired} times and never changed a byte")
        elif fault.do.corrupting and not changes.read:
            why.append(f"{fault.name} changed bytes {changes.changed} times, and no step read them")
    return tuple(why)


def _missed_floors(exercised: Exercised, floors: Mapping[str, int]) -> tuple[str, ...]:
    return tuple(
        f"{name} = {getattr(exercised, name)}, below the floor of {floor}"
        for name, floor in floors.items()
        if getattr(exercised, name) < floor
    )
