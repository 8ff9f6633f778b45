"""One scenario from the load to the verdict: `run_scenario` is the whole story.

scenario ─> sessions ─> target under load and faults ─> events ─> detectors ┐
                              └─ answers ─> oracle (clean decode) ──────────┴─> verdict, token, folder
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import msgspec

from detectors.base import Finding, Verdict
from detectors.canary import CanaryDetector
from detectors.divergence import divergence
from detectors.ordering import OrderingDetector
from detectors.ownership import OwnershipDetector
from reports.summary import funnel_counts
from repro.base.probe import Event, Tokens
from repro.fault.defects import with_defects
from repro.fault.injector import Injector
from repro.judges import TEXT_DETECTORS, TextJudges, shown, vocabulary_of
from repro.load.faults import faults_of
from repro.load.history import TokenCounter, characters_per_four
from repro.load.plan import LoadPlan, LoadResult, OnProgress, TextFinding
from repro.oracle.clean import CleanDecoder
from repro.oracle.compare import compare, to_decode
from repro.record.exercised import ExerciseMeter
from repro.record.folder import RunFolder
from repro.record.requests import RequestRecord
from repro.scenario import Scenario
from repro.schedule import token as tokens
from repro.schedule.pickers import RandomPicker, timed
from repro.schedule.token import Picker, Token
from repro.sessions import sessions_of
from repro.target import BundledTarget, Checkpoint, Load, ServerTarget, load_checkpoint
from repro.verdict import Judgement, judge

ORACLE_SAMPLE = 8  # answers that no detector suspects, decoded again all the same


@dataclass(frozen=True)
class RunOptions:
    """How to run a scenario."""

    seed: int = 0
    control: bool = False  # guards in place: no defect
    no_faults: bool = False
    picker: Picker = "timed"
    url: str = ""  # a running server instead of the bundled stack
    oracle_sample: int = ORACLE_SAMPLE


@dataclass
class Observed:
    """Everything that is recorded while the load runs."""

    folder: RunFolder
    ordering: OrderingDetector = field(default_factory=OrderingDetector)
    ownership: OwnershipDetector = field(default_factory=OwnershipDetector)
    canary: CanaryDetector = field(default_factory=CanaryDetector)
    exercise: ExerciseMeter = field(default_factory=ExerciseMeter)
    answers: dict[str, list[int]] = field(default_factory=dict)
    logprobs: dict[str, list[float]] = field(default_factory=dict)
    records: list[RequestRecord] = field(default_factory=list)
    text_findings: list[Finding] = field(default_factory=list)

    def feed(self, event: Event) -> None:
        """Take an event of the stack."""
        self.folder.emit(event)
        for detector in (self.ordering, self.ownership, self.canary, self.exercise):
            detector.feed(event)
        if isinstance(event, Tokens):
            self.answers.setdefault(event.request, []).extend(event.ids)
            self.logprobs.setdefault(event.request, []).extend(event.logprobs)

    def request(self, record: RequestRecord) -> None:
        """Take a request that is over."""
        record.tokens = self.answers.get(record.request, record.tokens)
        record.logprobs = self.logprobs.get(record.request, record.logprobs)
        self.records.append(record)
        self.folder.add_request(record)

    def finding(self, request: str, finding: TextFinding) -> None:
        """Take a finding of an online text detector."""
        assert isinstance(finding, Finding)
        self.text_findings.append(msgspec.structs.replace(finding, request=request))


@dataclass(frozen=True)
class Outcome:
    """What a run came to. `verdict` is the JSON object of the command line."""

    judgement: Judgement
    verdict: dict[str, object]
    fingerprint: str
    path: Path


def run_scenario(
    scenario: Scenario,
    options: RunOptions,
    *,
    root: Path,
    utc: datetime,
    progress: OnProgress = lambda snapshot: None,
    oracle_progress: Callable[[int, int], None] = lambda number, total: None,
) -> Outcome:
    """Run a scenario on the bundled stack and return its outcome; everything is in its run folder.

    Raises ScenarioError, RecordError, HarnessError. A Ctrl-C ends the load; what is there is judged.
    """
    checkpoint = load_checkpoint(scenario.config)
    sessions = sessions_of(scenario.load, options.seed)
    faults = () if options.no_faults else scenario.faults
    folder = RunFolder.create(
        root,
        scenario.name,
        utc,
        options.seed,
        scenario_toml=scenario.source,
        versions=versions(),
        config=asdict(options),
    )
    observed = Observed(folder)
    injector = Injector(faults, options.seed, (observed.feed,))
    target = _target(scenario, options, checkpoint, injector)
    judges = TextJudges(vocabulary_of(checkpoint.tokenizer, checkpoint.model.shape.vocab_size, checkpoint.model.eos))
    try:
        plan = _plan(scenario, options, checkpoint, injector)
        result = target.drive(Load(sessions, plan, judges, observed.request, observed.finding, progress))
        if isinstance(target, BundledTarget):
            injector.note_reordered(target.device.reordered)
        verdicts = _verdicts(observed, target, judges, options, oracle_progress)
        judgement = judge(
            verdicts,
            result,
            faults=faults,
            counts=injector.counts,
            exercised=observed.exercise.counts,
            floors=scenario.exercise,
        )
        return _close(folder, scenario, options, observed, injector, verdicts, judgement, result)
    except BaseException as error:
        folder.close("interrupted" if isinstance(error, KeyboardInterrupt) else "failed", error=str(error))
        raise


def _target(
    scenario: Scenario, options: RunOptions, checkpoint: Checkpoint, injector: Injector
) -> BundledTarget | ServerTarget:
    if options.url:
        return ServerTarget(options.url)
    guards = with_defects(() if options.control else scenario.defects, scenario.name)
    pick = RandomPicker(options.seed) if options.picker == "random" else timed
    return BundledTarget(scenario.config, checkpoint, guards=guards, probes=injector, pick=pick, seed=options.seed)


def versions() -> dict[str, str]:
    """Return the versions that a run depends on."""
    names = ("glm5-repro", "torch", "numpy", "tokenizers")
    return {name: version(name) for name in names} | {"machine": tokens.machine_class()}


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
        faults=faults_of(injector),
    )


def _counter(checkpoint: Checkpoint) -> TokenCounter:
    return lambda text: len(checkpoint.encoder.encode_text(text))


def _verdicts(
    observed: Observed,
    target: BundledTarget | ServerTarget,
    judges: TextJudges,
    options: RunOptions,
    oracle_progress: Callable[[int, int], None],
) -> list[Verdict]:
    """Mark the requests with what the detectors say, ask the oracle, and return all answers."""
    for record in observed.records:
        record.raced = record.request in observed.ordering.raced
        record.corrupted = record.request in observed.canary.corrupted
        record.poisoned = record.request in observed.canary.poisoned
        record.origin = observed.canary.poisoned.get(record.request, "")
    verdicts = [observed.ordering.verdict(), observed.ownership.verdict(), observed.canary.verdict()]
    if isinstance(target, ServerTarget):
        why = "a server at a URL has no clean decode of ours to compare with"
        return [*verdicts, Verdict("divergence", "not_applicable", (), why), *_text_verdicts(observed)]
    if target.checkpoint.model.weights is None:
        why = "numerics = stamps moves no tensors: there is no answer to compare"
        return [*verdicts, *(Verdict(name, "not_applicable", (), why) for name in ("divergence", *TEXT_DETECTORS))]
    wanted = to_decode(observed.records, options.oracle_sample, options.seed)
    verdicts.append(_ask_oracle(wanted, target, oracle_progress))
    for record in wanted:
        prompt = target.checkpoint.encoder.decode(target.kept.requests[record.request].tokens)
        own = judges.convicting(prompt, record.clean_text, record.clean_tokens)
        record.own = any(name in own for name in record.detectors)
        record.visible = bool(record.detectors) and not record.own
    return verdicts + _text_verdicts(observed)


def _ask_oracle(wanted: list[RequestRecord], target: BundledTarget, progress: Callable[[int, int], None]) -> Verdict:
    model = target.checkpoint.model
    assert model.weights is not None
    decoder = CleanDecoder(model.weights, target.config.context_tokens, model.eos)

    def text(tokens: Sequence[int]) -> str:
        return shown(target.checkpoint.encoder.decode([token for token in tokens if token not in model.eos]))

    compared = compare(wanted, target.kept.requests, decoder, text, progress)
    return divergence(compared, asked=len(wanted))


def _text_verdicts(observed: Observed) -> list[Verdict]:
    """Return the text detectors' answers; what the clean decode says too convicts nobody."""
    own = {record.request for record in observed.records if record.own}
    verdicts = []
    for name in TEXT_DETECTORS:
        found = tuple(f for f in observed.text_findings if f.detector == name and f.request not in own)
        verdicts.append(Verdict(name, "anomaly" if found else "clean", found, "", len(observed.records)))
    return verdicts


def _close(
    folder: RunFolder,
    scenario: Scenario,
    options: RunOptions,
    observed: Observed,
    injector: Injector,
    verdicts: list[Verdict],
    judgement: Judgement,
    result: LoadResult,
) -> Outcome:
    """Write what is left, take the fingerprint, and make the token."""
    for record in observed.records:
        folder.add_request(record)
    for verdict in verdicts:
        for finding in verdict.findings:
            folder.add_finding(finding)
    fingerprint = folder.fingerprint.hexdigest()
    token = Token(
        scenario=tokens.scenario_hash(scenario.source),
        seed=options.seed,
        control=options.control,
        no_faults=options.no_faults,
        picker=options.picker,
        fingerprint=fingerprint[:20],
        code=tokens.code_hash(),
        machine=tokens.machine_hash(),
    ).encode()
    said: dict[str, object] = {
        "verdict": judgement.word,
        "why": list(judgement.why),
        "scenario": scenario.name,
        "seed": options.seed,
        "control": options.control,
        "requests": len(observed.records),
        "findings": {v.detector: sum(f.count for f in v.findings) for v in verdicts if v.findings},
        "detectors": {v.detector: v.answer for v in verdicts},
        "funnel": funnel_counts(observed.records),
        "faults": {name: msgspec.to_builtins(count) for name, count in injector.counts.items()},
        "exercised": msgspec.to_builtins(observed.exercise.counts),
        "virtual_s": round(result.duration_s, 6),
        "fingerprint": fingerprint,
        "token": token,
        "run_dir": str(folder.path),
        "report": str(folder.report_path),
    }
    answers = {v.detector: {"answer": v.answer, "checked": v.checked, "why": v.why} for v in verdicts}
    folder.close("interrupted" if result.interrupted else "finished", verdict=said, detectors=answers)
    return Outcome(judgement, said, fingerprint, folder.path)
