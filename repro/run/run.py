"""One scenario from the load to the verdict: `run_scenario` is the whole story.

scenario ─> sessions ─> target under load and faults ─> events ─> detectors ┐
                              └─ answers ─> oracle (clean decode) ──────────┴─> verdict, token, folder
"""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec

from detectors.base import Finding
from detectors.pages.sets import Sample
from detectors.registry import event_detectors
from repro.fault.injector import Injector
from repro.record.folder import RunFolder, RunMeta, utc_stamp
from repro.record.verdict import RunVerdict
from repro.run.closing import close_with_verdict, closed_on_error
from repro.run.judge.funnel import fault_outcomes
from repro.run.judge.marks import event_verdicts
from repro.run.judge.verdict import Evidence, judge
from repro.run.limits import LimitWatch
from repro.run.options import RunOptions, Watch
from repro.run.recorder import Recorder
from repro.run.targets.base import Load, plan_of
from repro.run.targets.choose import choose_target
from repro.run.versions import hash_of, versions
from repro.scenario.overrides import overridden
from repro.scenario.schema import Scenario
from repro.scenario.sessions import sessions_of
from repro.schedule.strategies import Exploring
from repro.serve.guards import Guards
from repro.serve.stack import Build, build


@dataclass(frozen=True)
class Outcome:
    """What a run came to; its verdict is the JSON object of the command line."""

    verdict: RunVerdict
    findings: tuple[Finding, ...] = ()
    explored: Exploring | None = None  # None: a server chooses for itself

    @property
    def path(self) -> Path:
        """Return the run's folder."""
        return Path(self.verdict.run_dir)

    @property
    def fingerprint(self) -> str:
        """Return the run's fingerprint."""
        return self.verdict.fingerprint


def run_scenario(
    scenario: Scenario,
    options: RunOptions,
    *,
    root: Path,
    utc: datetime,
    watch: Watch = Watch(),  # noqa: B008  (frozen)
    guards: Guards | None = None,
    build: Build = build,
) -> Outcome:
    """Run a scenario on its target and return the outcome; everything is in its run folder.

    `guards` take the place of those that the scenario's defects leave, and `build` makes the bundled stack. A Ctrl-C
    ends the load, or the oracle, and what was recorded is judged. Raises ScenarioError, TargetError, RecordError,
    HarnessError, and StoppedError for a second Ctrl-C. Every error except UsageError carries the run folder's path.
    """
    played = overridden(scenario, options.overrides)
    sessions = sessions_of(played.load, options.seed)
    target = choose_target(played, options, sessions, guards, build)
    needs = versions() | dict(target.versions) | {"sessions": hash_of(sessions)}
    meta = RunMeta(scenario.name, options.seed, utc_stamp(utc), versions=needs, config=msgspec.to_builtins(options))
    folder = RunFolder.create(root, meta, scenario.source, redact=options.redact)
    with closed_on_error(folder):
        limits = LimitWatch(played.limits.wall_s, played.limits.requests, watch.clock_s, lambda: folder.log.events)
        detectors = event_detectors(Sample(played.detect.pages_sampled, options.seed))
        recorder = Recorder(folder, limits, target.answer_detectors, target.acceptance, detectors)
        injector = Injector(options.armed(played.faults), options.seed, (recorder.feed, *watch.listeners))
        target.prepare(injector, watch.note)
        plan = plan_of(played.load, options.seed, target, injector)
        result = target.drive(Load(sessions, plan, (recorder, watch.load), limits))
        verdicts = [*event_verdicts(recorder), *target.evidence(recorder, watch.load.on_check)]
        evidence = Evidence(
            verdicts=verdicts,
            result=result,
            records=options.redacted(recorder.records),
            faults=injector.faults,
            fault_outcomes=fault_outcomes(injector.counts, target.corruptions),
            exercised=recorder.exercise.counts,
            floors=played.exercise,
            cut=limits.cut,
        )
        verdict = close_with_verdict(recorder, scenario, options, target, evidence, judge(evidence))
        return Outcome(verdict, evidence.findings, target.explored)
