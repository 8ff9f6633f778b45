"""The protocol of a target, and the load that it drives."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from detectors.answers.acceptance import AcceptanceRules
from detectors.base import DetectorVerdict
from repro.fault.aftermath import Corruptions
from repro.fault.injector import Injector
from repro.load.faults import faults_of
from repro.load.listener import LoadListener
from repro.load.plan import LoadPlan, LoadResult
from repro.run.answer_detectors import AnswerDetectors
from repro.run.limits import LimitWatch
from repro.run.recorder import Recorder
from repro.scenario.schema import LoadSpec
from repro.schedule.strategies import Exploring
from repro.trace.format import Session


@dataclass(frozen=True)
class Load:
    """What to drive, who listens while it runs, and what ends it early."""

    sessions: Sequence[Session]
    plan: LoadPlan
    listeners: Sequence[LoadListener]
    limits: LimitWatch

    def on_check(self, number: int, total: int) -> None:
        """Tell the listeners how many answers have been asked for again."""
        for listener in self.listeners:
            listener.on_check(number, total)


class Target(Protocol):
    """What one run drives. Its methods are called once each, in this order: prepare, drive, evidence.

    The attributes hold from the start; corruptions and explored are complete once the load has been driven.
    """

    versions: Mapping[str, str]  # names and versions of engines outside this package
    repeats: bool  # the seed alone brings the same run again, so that a token can name it
    answer_detectors: AnswerDetectors
    acceptance: AcceptanceRules
    corruptions: Mapping[str, Corruptions]  # fault -> reads of the bytes that it changed
    explored: Exploring | None  # None: a server chooses its schedule for itself

    @property
    def context_tokens_max(self) -> int | None:
        """Return the model's limit; None where it is not known, or not yet."""

    def count_tokens(self, text: str) -> int:
        """Return how many tokens a text has, or about how many."""

    def prepare(self, injector: Injector, note: Callable[[str], None]) -> None:
        """Take the probes of the run, and note what a user should know before the load begins."""

    def drive(self, load: Load) -> LoadResult:
        """Run the whole load to its end. Raises TargetError, HarnessError or UsageError."""

    def evidence(self, recorder: Recorder, on_check: Callable[[int, int], None]) -> list[DetectorVerdict]:
        """Mark the requests with the findings that only this target can make, and return its detectors' verdicts."""


def plan_of(load: LoadSpec, seed: int, target: Target, injector: Injector) -> LoadPlan:
    """Return how the scenario's load is driven against a target."""
    return LoadPlan(
        shape=load.shape,
        concurrency=load.concurrency,
        seed=seed,
        time_scale=load.time_scale,
        history=load.history,
        count_tokens=target.count_tokens,
        context_tokens_max=target.context_tokens_max,
        answer_tokens_max=load.answer_tokens_max,
        on_anomaly=load.on_anomaly,
        anomaly_retries_max=load.anomaly_retries_max,
        faults=faults_of(injector),
    )
