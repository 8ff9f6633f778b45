"""From the evidence to the word of the verdict, and the sentences that led to it."""

from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec

from detectors.base import DetectorVerdict, Finding
from repro.base.verdict_word import VerdictWord
from repro.fault.plan import Fault
from repro.load.plan import LoadResult
from repro.record.exercised import Exercised
from repro.record.requests import WHOLE, RequestRecord
from repro.record.verdict import EndedEarly, FaultOutcome

SERVER_LOST = ("refused", "died")  # kinds of errors of a server that does not answer any more
CLIENT = "client"  # the kind of an error that the harness caused: a bound, or Ctrl-C
ERROR_CHARACTERS_MAX = 300


class Judgement(msgspec.Struct, frozen=True):
    """The verdict's word and the sentences that led to it."""

    word: VerdictWord
    why: tuple[str, ...]


class RunEvidence(msgspec.Struct, frozen=True, kw_only=True):
    """All that the verdict of a run rests on; a finding's own evidence is in `detectors/evidence.py`."""

    verdicts: Sequence[DetectorVerdict]
    result: LoadResult
    records: Sequence[RequestRecord] = ()
    faults: Sequence[Fault] = ()
    fault_outcomes: Mapping[str, FaultOutcome] = {}
    exercised: Exercised = msgspec.field(default_factory=Exercised)
    floors: Mapping[str, int] = {}
    cut: EndedEarly | None = None

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Return what all detectors found."""
        return tuple(finding for verdict in self.verdicts for finding in verdict.findings)


def judge(evidence: RunEvidence) -> Judgement:
    """Return the verdict; where several hold: failed, then anomaly, vacuous, inconclusive, clean.

    A run that was cut is never vacuous: its rest might have met the floors.
    """
    failures = _failures(evidence.result, evidence.records)
    if failures:
        return Judgement(VerdictWord.FAILED, failures)
    cut = (f"{evidence.cut.why}; the figures are of what was done",) if evidence.cut else ()
    missing = _unanswered(evidence.records) + cut + _unnoticed(evidence.fault_outcomes)
    convicted = tuple(_conviction(verdict) for verdict in evidence.verdicts if verdict.answer == "anomaly")
    if convicted:
        return Judgement(VerdictWord.ANOMALY, convicted + missing)
    empty = _vacuous_faults(evidence.faults, evidence.fault_outcomes) + _missed_floors(evidence)
    if empty and not cut:
        return Judgement(VerdictWord.VACUOUS, empty + missing)
    unknown = tuple(f"{each.detector}: {each.why}" for each in evidence.verdicts if each.answer == "unknown")
    if unknown or missing:
        return Judgement(VerdictWord.INCONCLUSIVE, missing + unknown)
    return Judgement(VerdictWord.CLEAN, ())


def _conviction(verdict: DetectorVerdict) -> str:
    """Return how much a detector found: hundreds of findings of one cause are one bug."""
    count, causes = sum(found.count for found in verdict.findings), len({found.signature for found in verdict.findings})
    of = f"{causes} cause{'s' * (causes > 1)}"
    return f"{verdict.detector}: {count} finding{'s' * (count > 1)} of {of}"


def _failures(result: LoadResult, records: Sequence[RequestRecord]) -> tuple[str, ...]:
    """Return why the run proves nothing because of its target."""
    if result.target_lost:
        return (f"the target stopped answering: {result.target_lost}",)
    broken = {kind: count for kind, count in result.errors.items() if kind != CLIENT}
    if broken and not result.answered and not result.aborted:
        errors = ", ".join(f"{count} {kind}" for kind, count in broken.items())
        return (f"no request was answered: {errors}{_example(records)}",)
    over = [record for record in records if record.finished_us >= 0 and _error_kind(record) != CLIENT]
    last = max(over, key=lambda record: record.finished_us, default=None)
    if last is not None and _error_kind(last) in SERVER_LOST:
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
    errors = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    return (f"{len(left)} of {len(last)} turns got no answer: {errors}{_example(left)}",)


def _example(records: Sequence[RequestRecord]) -> str:
    first = next((record for record in records if record.error), None)
    return "" if first is None else f"; the first, {first.request}: {first.error[:ERROR_CHARACTERS_MAX]}"


def _error_kind(record: RequestRecord) -> str:
    return record.error.partition(":")[0]


def _unnoticed(outcomes: Mapping[str, FaultOutcome]) -> tuple[str, ...]:
    """Return which changed bytes were read, and no detector noticed."""
    counts = {name: (each.read or 0, each.detected or 0) for name, each in outcomes.items()}
    return tuple(
        f"{name}: of {read} changes that a step read, {read - detected} were not noticed"
        for name, (read, detected) in counts.items()
        if detected < read
    )


def _vacuous_faults(faults: Sequence[Fault], outcomes: Mapping[str, FaultOutcome]) -> tuple[str, ...]:
    """Return which faults had no effect."""
    why = []
    for fault in {fault.name: fault for fault in faults}.values():
        outcome = outcomes[fault.name]
        if not outcome.fired:
            why.append(f"{fault.name} never fired ({outcome.reached} hits of its point)")
        elif fault.do.timing and not outcome.reordered:
            why.append(f"{fault.name} fired {outcome.fired} times and never changed an order")
        elif fault.do.corrupting and not outcome.changed:
            why.append(f"{fault.name} fired {outcome.fired} times and never changed a byte")
        elif fault.do.corrupting and not outcome.read:
            why.append(f"{fault.name} changed bytes {outcome.changed} times, and no step read them")
    return tuple(why)


def _missed_floors(evidence: RunEvidence) -> tuple[str, ...]:
    reached = {name: getattr(evidence.exercised, name) for name in evidence.floors}
    return tuple(
        f"{name} = {reached[name]}, below the floor of {floor}"
        for name, floor in evidence.floors.items()
        if reached[name] < floor
    )
