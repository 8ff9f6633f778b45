"""One scenario from the load to the verdict: `run_scenario` is the whole story.

scenario ─> sessions ─> target under load and faults ─> events ─> detectors ┐
                              └─ answers ─> oracle (clean decode) ──────────┴─> verdict, token, folder
"""

from datetime import datetime
from pathlib import Path

from repro.fault.injector import Injector
from repro.run.closing import close_with_verdict, closed_on_error
from repro.run.judge.marks import event_verdicts
from repro.run.judge.sums import fault_outcomes
from repro.run.judge.verdict import RunEvidence, judge
from repro.run.limits import LimitWatch
from repro.run.opening import open_folder
from repro.run.options import RunOptions, Watch
from repro.run.outcome import Outcome
from repro.run.recorder import Recorder, sampled_detectors
from repro.run.targets.base import Load, plan_of
from repro.run.targets.choose import choose_target
from repro.scenario.overrides import overridden
from repro.scenario.schema import Scenario
from repro.scenario.sessions import sessions_of
from repro.serve.guards import Guards
from repro.serve.stack import Build, build


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
    # The folder and the token keep the scenario as its file has it: a replay applies the overrides again.
    effective = overridden(scenario, options.overrides)
    sessions = sessions_of(effective.load, options.seed)
    target = choose_target(effective, options, sessions, guards, build)
    folder = open_folder(root, utc, scenario, options, sessions, target.versions)
    with closed_on_error(folder):
        limits = LimitWatch(
            effective.limits.wall_s, effective.limits.requests, watch.clock_s, lambda: folder.log.events
        )
        detectors = sampled_detectors(effective.detect.pages_sampled, options.seed)
        recorder = Recorder(folder, limits, target.answer_detectors, target.acceptance, watch.load, detectors)
        injector = Injector(options.armed(effective.faults), options.seed, watch.listeners, record=recorder.feed)
        target.prepare(injector, watch.note)
        plan = plan_of(effective.load, options.seed, target, injector)
        result = target.drive(Load(sessions, plan, (recorder, watch.load), limits))
        verdicts = [*event_verdicts(recorder), *target.evidence(recorder, watch.load.on_check)]
        evidence = RunEvidence(
            verdicts=verdicts,
            result=result,
            records=options.redacted(recorder.records),
            faults=injector.faults,
            fault_outcomes=fault_outcomes(injector.counts, target.corruptions),
            exercised=recorder.exercise.counts,
            floors=effective.exercise,
            cut=limits.cut,
        )
        verdict = close_with_verdict(recorder, scenario, options, target, evidence, judge(evidence))
        return Outcome(verdict, evidence.findings, target.explored)
