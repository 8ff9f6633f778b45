"""One scenario over many seeds, with the defect and without: how often it is found, how often silent.

Runs are made in worker processes, so that a crash is one run that died and the others go on.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import get_args

import msgspec

from detectors.base import Layer
from reports.rates import rate_of
from repro.base.verdict_word import VerdictWord
from repro.fleet.runs import PlannedRun, make_runs
from repro.record.verdict import RunVerdict
from repro.scenario.schema import Scenario

LAYERS: tuple[str, ...] = get_args(Layer)
DEFECT, CONTROL, NO_FAULTS = SIDES = ("defect", "control", "defect, no faults")


class SideRun(PlannedRun, frozen=True, kw_only=True):
    """A run of one side."""

    side: str


class Side(msgspec.Struct, frozen=True):
    """All runs of one side; a run that died has no verdict, only its error."""

    name: str
    verdicts: tuple[RunVerdict, ...]
    errors: tuple[str, ...]

    def count(self, word: str) -> int:
        """Return how many runs came to this verdict."""
        return sum(verdict.word == word for verdict in self.verdicts)


def run_campaign(
    scenario: Scenario,
    seeds: Sequence[int],
    sides: Sequence[str],
    *,
    root: Path,
    workers: int,
    on_end: Callable[[str, int, str], None],
) -> list[Side]:
    """Run every seed on every side and return the sides; `on_end(side, seed, verdict)` after each run.

    A Ctrl-C ends the runs under way; what ended before is returned.
    """
    results: dict[tuple[str, int], RunVerdict | str] = {}
    runs = [
        SideRun(
            scenario.name, scenario.source, seed, control=side == CONTROL, no_faults=side == NO_FAULTS,
            root=str(root), report=True, side=side,
        )
        for side in sides
        for seed in seeds
    ]  # fmt: skip

    def take(run: SideRun, result: RunVerdict | str) -> None:
        results[run.side, run.seed] = result
        on_end(run.side, run.seed, result.word if isinstance(result, RunVerdict) else result)

    make_runs(runs, workers, take)
    return [_side(name, [results[name, seed] for seed in seeds if (name, seed) in results]) for name in sides]


def exit_code(sides: Sequence[Side], seeds: int) -> int:
    """Return 0 when every defect was found and every control silent, 1 when not, 4 for dead runs, 5 for fewer."""
    defect, control = sides[:2]
    if any(side.errors for side in sides):
        return VerdictWord.FAILED.exit_code
    if any(len(side.verdicts) < seeds for side in sides):
        return VerdictWord.INCONCLUSIVE.exit_code
    as_expected = defect.count(VerdictWord.ANOMALY) == seeds == control.count(VerdictWord.CLEAN)
    return (VerdictWord.CLEAN if as_expected else VerdictWord.ANOMALY).exit_code


def first_findings(side: Side) -> dict[str, tuple[int, str]]:
    """Return, for each layer, how many runs found something and, in words, after how many requests."""
    found: dict[str, tuple[int, str]] = {}
    for layer in LAYERS:
        requests = sorted(verdict.first[layer].requests for verdict in side.verdicts if layer in verdict.first)
        if requests:
            found[layer] = len(requests), f"{median(requests):g} ({requests[0]} to {requests[-1]})"
    return found


def corrupted_rate(side: Side) -> str:
    """Return in words the rate, with its interval, of requests that read wrong bytes themselves; poisoned or not."""
    if not side.verdicts:
        return "no run"
    per_run = [(v.funnel.corrupted, v.funnel.requests) for v in side.verdicts]
    rate = rate_of("corrupted", per_run)
    return f"{rate.count} of {rate.of} ({rate.count / max(1, rate.of):.2%}, 95 % {rate.low:.2%} to {rate.high:.2%})"


def _side(name: str, results: Sequence[RunVerdict | str]) -> Side:
    verdicts = tuple(result for result in results if isinstance(result, RunVerdict))
    return Side(name, verdicts, tuple(result for result in results if isinstance(result, str)))
