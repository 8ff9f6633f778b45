"""One scenario from the load to the verdict: `run_scenario` is the whole story.

scenario ─> sessions ─> target under load and faults ─> events ─> detectors ┐
                              └─ answers ─> oracle (clean decode) ──────────┴─> verdict, token, folder
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path

import msgspec

from detectors.answers.clean_cache import ORACLES, read_calibration
from detectors.base import Finding, Verdict
from detectors.pages.sets import Sample
from detectors.registry import event_detectors
from repro.base.errors import UsageError
from repro.engines.sglang import pinned
from repro.engines.sglang.classes.build import build_sglang
from repro.fault.aftermath import Corruptions
from repro.fault.corrupt import Corruptor
from repro.fault.defects import with_defects
from repro.fault.injector import FaultCounts, Injector
from repro.fault.plan import Fault
from repro.load.faults import faults_of
from repro.load.history import TokenCounter, characters_per_four
from repro.load.lag import Quantiles
from repro.load.plan import LoadPlan, LoadResult
from repro.record.counts import compared_of, contexts_cut_of, funnel_of, retries_of
from repro.record.folder import RunFolder
from repro.record.redact import redacted_check, redacted_error
from repro.record.requests import RequestRecord
from repro.record.verdict import ClientLag, DetectorAnswer, EndedEarly, FaultOutcome, RunVerdict
from repro.run.closing import kept
from repro.run.judge.funnel import first_findings, signature_counts
from repro.run.judge.marks import ClosedOracle, verdicts_of
from repro.run.judge.online import TextJudges, acceptance_rules, nonces_of, vocabulary_of
from repro.run.judge.verdict import Judgement, judge
from repro.run.limits import LimitWatch
from repro.run.options import RunOptions, Watch
from repro.run.recorder import Observed
from repro.run.targets import BundledTarget, Checking, Checkpoint, Load, ServerTarget, load_checkpoint
from repro.scenario.overrides import overridden
from repro.scenario.schema import Scenario
from repro.scenario.sessions import longest_wait_s, sessions_of
from repro.schedule import token as tokens
from repro.schedule.pickers import Pick, timed
from repro.schedule.strategies import Exploring, explorer
from repro.schedule.token import Token
from repro.serve.engine import checkpoint_folder
from repro.serve.guards import Guards
from repro.trace.format import Session

NOTED_WAIT_S = 600.0  # in real time, somebody would take it for a hang


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
) -> Outcome:
    """Run a scenario on its target and return the outcome; everything is in its run folder.

    `guards` take the place of those that the scenario's defects leave. A Ctrl-C ends the load, or the oracle, and
    what was recorded is judged. Raises ScenarioError, TargetError, RecordError, HarnessError, and StoppedError for
    a second Ctrl-C. Every error except UsageError carries the run folder's path.
    """
    named, scenario = scenario, overridden(scenario, options.overrides)
    engine = _engine_versions(scenario)  # before there is a folder: it may not be installed
    checkpoint = load_checkpoint(scenario.config)
    acceptance = acceptance_rules(scenario.acceptance, None if options.url else checkpoint_folder(scenario.config))
    sessions = sessions_of(scenario.load, options.seed)
    closed = _closed_oracle(options)
    server = _server(options, closed)
    if server:
        _note_waits(scenario, sessions, watch.note)
        _note_lengths(scenario, closed, watch.note)
    faults = _faults(scenario, options)
    folder = RunFolder.create(
        root, named.name, utc, options.seed, scenario_toml=named.source,
        versions=versions() | engine | {"sessions": hash_of(sessions)},
        config=msgspec.to_builtins(options), redact=options.redact,
    )  # fmt: skip
    with kept(folder):
        limits = LimitWatch(scenario.limits.wall_s, scenario.limits.requests, watch.clock_s, lambda: folder.log.events)
        judges = _judges(checkpoint, sessions, options)
        detectors = event_detectors(Sample(scenario.detect.pages_sampled, options.seed))
        observed = Observed(folder, limits, judges, acceptance, detectors)
        injector = Injector(faults, options.seed, (observed.feed, *watch.listeners))
        corruptor = None if server else _corruptor(scenario, faults, injector, options.seed)
        explored = None if server else explorer(options.schedule)
        target = server or _bundled(scenario, options, checkpoint, injector, explored or timed, corruptor, guards)
        load = Load(sessions, _plan(scenario, options, checkpoint, injector), (observed, watch.load), limits)
        result = _driven(target, load, injector, options)
        verdicts = verdicts_of(
            observed, target, judges, sample=options.oracle_sample, seed=options.seed, progress=watch.load.on_check,
            closed=closed,
        )  # fmt: skip
        records = [_told(record) for record in observed.records] if options.redact else observed.records
        corruptions = {} if corruptor is None else corruptor.aftermath.counts
        judgement = judge(
            verdicts, result, records, faults=faults, counts=injector.counts, corruptions=corruptions,
            exercised=observed.exercise.counts, floors=scenario.exercise, cut=limits.reached,
        )  # fmt: skip
        outcome = _close(
            folder, named, options, observed, injector, verdicts, judgement, result, target.context_tokens_max,
            corruptions,
        )  # fmt: skip
        return replace(outcome, explored=explored)


def _engine_versions(scenario: Scenario) -> dict[str, str]:
    """Return the version of an engine that is not ours. Raises UsageError where it is not installed."""
    if scenario.engine != "sglang":
        return {}
    pinned.load()
    return {"sglang": pinned.VERSION}


def _server(options: RunOptions, closed: ClosedOracle | None) -> ServerTarget | None:
    """Return the server at the URL, None without one. Raises UsageError for what only a server can do."""
    if not options.url:
        if options.redact:
            raise UsageError("--redact needs a server at a URL: every token of the bundled stack is among its events")
        return None
    return ServerTarget(
        options.url, options.api, Checking(options.oracle_tokens, closed.calibration.model) if closed else None
    )


def _closed_oracle(options: RunOptions) -> ClosedOracle | None:
    """Return how a server's answers are checked. Raises UsageError for a calibration that does not fit."""
    if not options.calibration:
        return None
    path = Path(options.calibration)
    calibration = read_calibration(path)
    if calibration.api != options.api:
        raise UsageError(f"{path}: was made with --api {calibration.api}; give it here too, or calibrate anew")
    for oracle in ORACLES:
        if calibration.scores(oracle):
            calibration.limit(oracle, options.false_alarm_rate)
    return ClosedOracle(calibration, options.false_alarm_rate)


def _note_waits(scenario: Scenario, sessions: Sequence[Session], note: Callable[[str], None]) -> None:
    """Tell of think times that somebody who watches a server would take for a hang."""
    wait_s = longest_wait_s(sessions) * scenario.load.time_scale
    if wait_s > NOTED_WAIT_S:
        note(
            f"one session waits {wait_s / 60:,.0f} minutes between its turns, as recorded; --time-scale 0 asks at once"
        )


def _note_lengths(scenario: Scenario, closed: ClosedOracle | None, note: Callable[[str], None]) -> None:
    """Tell of answers longer than the calibrated ones, which the false-alarm rate does not hold for."""
    asked, learned = scenario.load.answer_tokens_max, closed.calibration.answer_tokens if closed else 0
    if asked > learned > 0:
        note(
            f"the calibration is of answers of up to {learned:,} tokens, and up to {asked:,} are asked for: longer "
            f"ones score higher, with more false alarms; `repro calibrate --answer-tokens {asked}` learns them"
        )


def _faults(scenario: Scenario, options: RunOptions) -> tuple[Fault, ...]:
    """Return the faults of a run; a control keeps those that change no bytes."""
    if options.no_faults:
        return ()
    return tuple(fault for fault in scenario.faults if not (options.control and fault.do.corrupting))


def _judges(checkpoint: Checkpoint, sessions: Sequence[Session], options: RunOptions) -> TextJudges:
    vocabulary = vocabulary_of(checkpoint.tokenizer, checkpoint.model.shape.vocab_size, checkpoint.model.eos)
    if options.url:  # its model's ids are others; how GLM spells control tokens may still show
        vocabulary = vocabulary.spelled_only()
    speaks = bool(options.url) or checkpoint.model.weights is not None
    return TextJudges(vocabulary, nonces_of(sessions), speaks=speaks)


def _corruptor(scenario: Scenario, faults: Sequence[Fault], injector: Injector, seed: int) -> Corruptor | None:
    """Return what changes bytes in the bundled stack's memory, None where no fault does."""
    if not any(fault.do.corrupting for fault in faults):
        return None
    corruptor = Corruptor(injector, seed, drafts=scenario.config.speculative_drafts > 0)
    injector.listen(corruptor.feed)
    return corruptor


def _bundled(
    scenario: Scenario,
    options: RunOptions,
    checkpoint: Checkpoint,
    injector: Injector,
    pick: Pick,
    corruptor: Corruptor | None,
    guards: Guards | None,
) -> BundledTarget:
    defects = () if options.control else scenario.defects
    if scenario.engine == "sglang":
        build = partial(build_sglang, defects)
        return BundledTarget(scenario.config, checkpoint, probes=injector, pick=pick, seed=options.seed, build=build)
    guards = guards or with_defects(defects, scenario.name)
    target = BundledTarget(scenario.config, checkpoint, guards=guards, probes=injector, pick=pick, seed=options.seed)
    if corruptor is not None:
        target.on_memory = corruptor.memory
    return target


def _driven(target: BundledTarget | ServerTarget, load: Load, injector: Injector, options: RunOptions) -> LoadResult:
    """Run the load. With `redact`, what the server said of its errors ends here, for the verdict tells reasons."""
    result = target.drive(load)
    if isinstance(target, BundledTarget):
        injector.note_reordered(target.device.reordered)
    elif options.redact:
        target.checks.done = [redacted_check(check) for check in target.checks.done]
        return msgspec.structs.replace(result, target_lost=redacted_error(result.target_lost))
    return result


def _told(record: RequestRecord) -> RequestRecord:
    """Return a request as a redacted verdict may tell it; whether there was an answer still shows."""
    return msgspec.structs.replace(record, error=redacted_error(record.error))


def versions() -> dict[str, str]:
    """Return the versions that a run depends on."""
    names = ("glm5-repro", "torch", "numpy", "tokenizers")
    return {name: version(name) for name in names} | {
        "machine": tokens.machine_class(),
        "code": tokens.code_hash().hex(),
    }


def hash_of(sessions: Sequence[Session]) -> str:
    """Return what tells whether a trace file has changed since."""
    total = hashlib.sha256()
    for session in sessions:
        total.update(msgspec.json.encode(session))
    return total.hexdigest()[:16]


def _plan(scenario: Scenario, options: RunOptions, checkpoint: Checkpoint, injector: Injector) -> LoadPlan:
    load = scenario.load
    return LoadPlan(
        shape=load.shape,
        concurrency=load.concurrency,
        seed=options.seed,
        time_scale=load.time_scale,
        history=load.history,
        count_tokens=characters_per_four if options.url else _counter(checkpoint),
        context_tokens_max=None if options.url else scenario.config.context_tokens,
        answer_tokens_max=load.answer_tokens_max,
        on_anomaly=load.on_anomaly,
        anomaly_retries_max=load.anomaly_retries_max,
        faults=faults_of(injector),
    )


def _counter(checkpoint: Checkpoint) -> TokenCounter:
    return lambda text: len(checkpoint.encoder.encode_text(text))


def _close(
    folder: RunFolder,
    scenario: Scenario,
    options: RunOptions,
    observed: Observed,
    injector: Injector,
    verdicts: list[Verdict],
    judgement: Judgement,
    result: LoadResult,
    limit_tokens: int | None,
    corruptions: Mapping[str, Corruptions],
) -> Outcome:
    """Write what is left, take the fingerprint, and make the token."""
    for record in observed.records:
        folder.add_request(record)
    findings = tuple(finding for each in verdicts for finding in each.findings)
    for finding in findings:
        folder.add_finding(finding)
    fingerprint, limits = folder.fingerprint.hexdigest(), observed.limits
    again = not limits.by_accident and not options.url  # such a run comes again from its seed alone
    records = observed.records
    verdict = RunVerdict(
        word=judgement.word,
        why=judgement.why,
        scenario=scenario.name,
        seed=options.seed,
        control=options.control,
        requests=len(records),
        findings={v.detector: sum(f.count for f in v.findings) for v in verdicts if v.findings},
        signatures=signature_counts(verdicts),
        first=first_findings(verdicts, records),
        detectors={v.detector: v.answer for v in verdicts},
        oracle=compared_of(records),
        contexts_cut=contexts_cut_of(records, limit_tokens or 0),
        client_lag_ms=_client_lag(result.lag),
        funnel=funnel_of(records),
        retries=retries_of(records),
        faults={name: _fault_outcome(counts, corruptions.get(name)) for name, counts in injector.counts.items()},
        exercised=observed.exercise.counts,
        virtual_s=round(result.duration_s, 6),
        cut=EndedEarly(limits.reached, limits.cut_at) if limits.reached else None,
        fingerprint=fingerprint,
        token=_token(scenario, options, fingerprint) if again else "",
        run_dir=str(folder.path),
        report=str(folder.report_path),
    )
    answers = {v.detector: DetectorAnswer(v.answer, v.checked, v.why) for v in verdicts}
    folder.close("interrupted" if limits.by_accident else "finished", verdict=verdict, detectors=answers)
    return Outcome(verdict, findings)


def _fault_outcome(counts: FaultCounts, changes: Corruptions | None) -> FaultOutcome:
    outcome = FaultOutcome(counts.armed, counts.reached, counts.fired, counts.reordered)
    return outcome if changes is None else msgspec.structs.replace(outcome, **msgspec.structs.asdict(changes))


def _client_lag(lag: Quantiles) -> ClientLag:
    return ClientLag(lag.count, round(lag.p50_s * 1e3, 3), round(lag.p99_s * 1e3, 3), round(lag.max_s * 1e3, 3))


def _token(scenario: Scenario, options: RunOptions, fingerprint: str) -> str:
    return Token(
        scenario=tokens.scenario_hash(scenario.source),
        seed=options.seed,
        control=options.control,
        no_faults=options.no_faults,
        schedule=options.schedule,
        overrides=options.overrides,
        fingerprint=fingerprint[: tokens.FINGERPRINT_DIGITS],
        code=tokens.code_hash(),
        machine=tokens.machine_hash(),
    ).encode()
