"""An experiment in numbers: its steps side by side, made from the records of their runs. Pure data."""

from collections import Counter
from collections.abc import Sequence

import msgspec

from reports.rates import Rate, rate_of
from repro.record.counts import session_hits
from repro.record.requests import WHOLE, RequestRecord
from repro.record.view import Run

CORRUPTED = "read wrong bytes"


class PartCounts(msgspec.Struct, frozen=True):
    """Sums over the runs of one part. Only `requests` counts all requests; the others leave out cut-off answers."""

    key: str
    variant: str
    sensitivity: bool
    runs: int
    verdicts: dict[str, int]
    died: tuple[str, ...]
    empty: tuple[str, ...]  # why seeds had nothing to ask
    missing: int
    requests: int
    finished: int
    raced: int
    corrupted: int  # corrupted at first hand or by reuse
    diverged: int
    visible: int
    runs_hit: int  # runs with a corrupted request
    rate: Rate  # corrupted among the finished, clustered over sessions
    differs: dict[str, object]  # what the variant sets beyond its step, by key
    numerics: str


class StepCounts(msgspec.Struct, frozen=True):
    """A step and its result; `met` is None for a step without an expectation."""

    name: str
    title: str
    about: str
    expect: str
    conditions: tuple[str, ...]
    differs: dict[str, object]  # what the step sets beyond the common tables, by key
    parts: tuple[PartCounts, ...]

    @property
    def main(self) -> tuple[PartCounts, ...]:
        """Return the parts outside the sensitivity table."""
        return tuple(part for part in self.parts if not part.sensitivity)

    @property
    def sensitivity(self) -> tuple[PartCounts, ...]:
        """Return the parts of the sensitivity table."""
        return tuple(part for part in self.parts if part.sensitivity)

    @property
    def met(self) -> bool | None:
        """Return whether every run came to what is expected; what is to be found includes a request that is hit."""
        word = {"silent": "clean", "found": "anomaly"}.get(self.expect)
        if word is None:
            return None
        runs = sum(part.runs for part in self.parts)
        convicted = word == "clean" or any(part.corrupted for part in self.parts)
        return runs > 0 and convicted and sum(part.verdicts.get(word, 0) for part in self.parts) == runs

    @property
    def told(self) -> str:
        """Return the step's result in a word."""
        if not any(part.runs for part in self.parts):
            return "not run"
        if self.expect == "rate":
            return "measured"
        words = Counter[str]()
        for part in self.parts:
            words.update(part.verdicts)
        if set(words) == {"clean"}:
            return "silent"
        if set(words) == {"anomaly"}:
            return "found" if any(part.corrupted for part in self.parts) else "found, no request hit"
        return ", ".join(f"{n} {word}" for word, n in sorted(words.items()))


class PartPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Facts of a part that need no run folder."""

    key: str
    variant: str
    sensitivity: bool
    died: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()
    missing: int = 0
    differs: dict[str, object] = {}
    numerics: str = "tensors"


def part_counts(plan: PartPlan, runs: Sequence[Run]) -> PartCounts:
    """Add up runs of one part."""
    records = [record for run in runs for record in run.requests]
    finished = [record for record in records if record.finish in WHOLE]
    hits = [session_hits([each for each in run.requests if each.finish in WHOLE], blind=False) for run in runs]
    return PartCounts(
        plan.key, plan.variant, plan.sensitivity, len(runs),
        dict(Counter(str(run.verdict and run.verdict.word) for run in runs)),
        plan.died, plan.empty, plan.missing,
        requests=len(records),
        finished=len(finished),
        raced=sum(record.raced for record in finished),
        corrupted=sum(map(is_corrupted, finished)),
        diverged=sum(record.oracle == "diverged" for record in finished),
        visible=sum(record.visible for record in finished),
        runs_hit=sum(any(hit for hit, _ in sessions) for sessions in hits),
        rate=rate_of(CORRUPTED, [session for sessions in hits for session in sessions]),
        differs=plan.differs,
        numerics=plan.numerics,
    )  # fmt: skip


def is_corrupted(record: RequestRecord) -> bool:
    """Return whether a request read wrong bytes, at first hand or by reuse."""
    return record.corrupted or record.poisoned
