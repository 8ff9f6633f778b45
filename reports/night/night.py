"""A night in numbers: what its JSON holds and what its page, its JUnit and its Markdown are made from. Pure data."""

import msgspec

from reports.rates import Rate
from repro.base.verdict_word import VerdictWord

FORMAT = 1
HEADLINES = {
    VerdictWord.CLEAN.exit_code: "Every case came to what is asked of it.",
    VerdictWord.ANOMALY.exit_code: "Something is wrong that should not be.",
    VerdictWord.VACUOUS.exit_code: "Runs were vacuous: what they should have exercised did not happen.",
    VerdictWord.FAILED.exit_code: "Runs died, so the night does not answer.",
    VerdictWord.INCONCLUSIVE.exit_code: "The night could not tell.",
}


class CaseRow(msgspec.Struct, frozen=True):
    """One case and property. `met` is None where the runs cannot decide it."""

    case: str
    role: str  # silent, found, reference
    title: str
    seeds: int  # seeds asked for
    runs: int
    verdicts: dict[str, int]
    died: tuple[str, ...]
    met: bool | None
    told: str
    rate: Rate  # wrong requests, clustered over sessions
    runs_hit: int
    sessions: tuple[tuple[int, int], ...]  # (wrong requests, requests) of each
    found_after: tuple[int, ...]  # requests sent until the first finding, of each run that found something
    schedules_to_find: int | None  # runs until the first that found something
    tokens_per_s: float | None

    @property
    def name(self) -> str:
        """Return the row's name in lists."""
        return f"{self.case} {self.role}"


class FindingRow(msgspec.Struct, frozen=True):
    """One cause, found in silent cases, with the first run that shows it."""

    signature: str
    cases: tuple[str, ...]
    runs: int
    count: int
    new: bool  # no past night of the suite has it
    nights: int  # past ones that had it
    example: str  # a run's folder
    report: str
    replay: str  # the command


class GateRow(msgspec.Struct, frozen=True):
    """One gate; `met` is None where the numbers are too small to decide it."""

    name: str
    limit: str
    value: str
    met: bool | None


class Comparison(msgspec.Struct, frozen=True):
    """Two sides, before and after: what differs and how sure that is."""

    before: str  # name
    after: str
    before_rate: Rate
    after_rate: Rate
    effect: float  # after - before
    effect_low: float
    effect_high: float
    p_value: float
    test: str
    power: float  # chance to see a fall to `power_share` of the rate before, with as many sessions
    power_to: float
    answer: str  # worse, same, better, inconclusive
    told: str
    new_signatures: tuple[str, ...] = ()
    gone_signatures: tuple[str, ...] = ()


class Pruned(msgspec.Struct, frozen=True):
    """What was taken off the disk."""

    runs: int = 0  # clean and vacuous ones, whole folders
    logs: int = 0  # event logs of runs whose cause another kept run shows
    bytes: int = 0


class Night(msgspec.Struct, frozen=True):
    """The JSON object of a night. Rates of the bundled stack are simulated: priced by the cost model."""

    suite: str
    suite_hash: str
    title: str
    verdict: str
    exit_code: int
    answer: str  # against the baseline: worse, same, better, inconclusive; "" without one
    why: tuple[str, ...]
    version: str
    code: str
    utc: str
    first_seed: int
    target: str
    defect: str
    elapsed_s: float
    made_s: float  # wall-clock time of all runs together, each where it was made
    runs: int
    requests: int
    missing: int
    rate: Rate  # wrong requests in silent cases
    cases: tuple[CaseRow, ...]
    findings: tuple[FindingRow, ...]
    gates: tuple[GateRow, ...]
    comparison: Comparison | None
    pruned: Pruned
    digest: str  # digest of everything that counts; equal for equal nights, however they were run
    folder: str
    format: int = FORMAT

    @property
    def scaling(self) -> str:
        """Return how far the runs were spread: what they took one after another, over what the night took."""
        at_once = self.made_s / self.elapsed_s if self.elapsed_s else 0.0
        return f"runs of {self.made_s:,.0f} s in {self.elapsed_s:,.0f} s: {at_once:.2f} at once"


class PastNight(msgspec.Struct, frozen=True):
    """A past night, as history shows it; further keys of its JSON are ignored."""

    suite: str
    suite_hash: str
    target: str
    defect: str
    verdict: str
    utc: str
    version: str
    code: str
    rate: Rate
    cases: tuple[CaseRow, ...]
    findings: tuple[FindingRow, ...]
    requests: int
    digest: str
    folder: str = ""
    format: int = FORMAT
