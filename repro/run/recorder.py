"""Everything that is recorded while the load of a run goes on."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from detectors.answers.acceptance import Acceptance, AcceptanceRules
from detectors.base import EventDetector, Finding
from detectors.pages.sets import Sample
from detectors.registry import event_detectors
from repro.base.probe import Burst, Event, RequestEvent, Tokens
from repro.load.listener import SILENT, CountsDetector, LoadListener, OnlineFinding, TextDetector
from repro.record.exercised import ExerciseMeter
from repro.record.folder import RunFolder
from repro.record.requests import RequestRecord, SentRequest
from repro.run.answer_detectors import AnswerDetectors
from repro.run.limits import LimitWatch

EVENTS_AT_ONCE = 1024  # between the steps of a run a detector's code and data are cold: one by one takes twice as long


@dataclass
class Recorder(LoadListener):
    """Listens to the stack and to the load, and keeps what its judges need."""

    folder: RunFolder
    limits: LimitWatch
    answer_detectors: AnswerDetectors
    acceptance: AcceptanceRules = field(default_factory=AcceptanceRules)
    watcher: LoadListener = SILENT  # hears what the detectors of events have found so far
    event_detectors: tuple[EventDetector, ...] = field(default_factory=event_detectors)
    exercise: ExerciseMeter = field(default_factory=ExerciseMeter)
    records: list[RequestRecord] = field(default_factory=list)
    text_findings: list[Finding] = field(default_factory=list)
    acceptance_findings: list[Finding] = field(default_factory=list)
    prompts: dict[str, str] = field(default_factory=dict)  # prompts of requests with a convicted answer
    _unfed: list[Event] = field(default_factory=list)  # events that the detectors have not had yet
    _answers: dict[str, list[int]] = field(default_factory=dict)  # this and the next four: requests under way
    _logprobs: dict[str, list[float]] = field(default_factory=dict)
    _accepting: dict[str, Acceptance] = field(default_factory=dict)
    _admissions: dict[str, RequestEvent] = field(default_factory=dict)
    _convicting: dict[str, list[str]] = field(default_factory=dict)  # names of online detectors

    def feed(self, event: Event) -> None:
        """Take an event of the stack."""
        self.limits.check_time()
        self.folder.emit(event)
        if isinstance(event, Burst):
            self._unfed += event.operations
        else:
            self._unfed.append(event)
        if len(self._unfed) >= EVENTS_AT_ONCE:
            self.feed_detectors()
        if isinstance(event, Tokens):
            self._answers.setdefault(event.request, []).extend(event.ids)
            self._logprobs.setdefault(event.request, []).extend(event.logprobs)
        elif isinstance(event, RequestEvent) and event.what == "admitted":
            self._admissions.setdefault(event.request, event)

    def feed_detectors(self) -> None:
        """Feed the detectors all events that they have not had yet."""
        events, self._unfed = self._unfed, []
        for detector in self.event_detectors:
            feed_all(detector, events)
        feed_all(self.exercise, events)
        if self.watcher is not SILENT:
            verdicts = [detector.verdict() for detector in self.event_detectors]
            counts = {each.detector: sum(f.count for f in each.findings) for each in verdicts if each.findings}
            if counts:
                first = min((finding for each in verdicts for finding in each.findings), key=lambda each: each.at_us)
                self.watcher.on_found(counts, first.claim)

    def text_detectors(self, request: str, prompt: str) -> Sequence[TextDetector]:
        """Take a request that is about to be sent; return the text detectors of its answer."""
        self.limits.count_request()
        self.prompts[request] = prompt
        return self.answer_detectors(request, prompt)

    def counts_detectors(self, request: str) -> Sequence[CountsDetector]:
        """Return the detectors of the counts of a request that is about to be sent."""
        self._accepting[request] = Acceptance(self.acceptance)
        return (self._accepting[request],)

    def on_request(self, request: SentRequest) -> None:
        """Take a request that is over."""
        record = RequestRecord.of(request)
        record.detectors = self._convicting.pop(record.request, [])
        record.tokens = self._answers.pop(record.request, record.tokens)
        record.logprobs = self._logprobs.pop(record.request, record.logprobs)
        admission = self._admissions.pop(record.request, None)
        if admission is not None:  # OpenAI's usage has only the sum over the tiers
            record.cached_device_tokens = int(admission.detail["device_hit"])
            record.cached_host_tokens = int(admission.detail["host_hit"])
        accepting = self._accepting.pop(record.request, None)
        if accepting is not None:
            record.spec_window_rates = accepting.window_rates
        if not record.detectors:
            self.prompts.pop(record.request, None)
        self.records.append(record)
        self.folder.add_request(record)

    def on_finding(self, request: str, finding: OnlineFinding) -> None:
        """Take a finding of an online detector."""
        assert isinstance(finding, Finding)
        self._convicting.setdefault(request, []).append(finding.detector)
        findings = self.acceptance_findings if finding.layer == "acceptance" else self.text_findings
        findings.append(msgspec.structs.replace(finding, request=request))


def sampled_detectors(pages_sampled: int, seed: int) -> tuple[EventDetector, ...]:
    """Return the detectors of events; ordering watches one page in `pages_sampled`."""
    return event_detectors(Sample(pages_sampled, seed))


def feed_all(detector: EventDetector | ExerciseMeter, events: list[Event]) -> None:
    """Feed a detector these events."""
    for event in events:
        detector.feed(event)
