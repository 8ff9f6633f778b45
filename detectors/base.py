"""What a detector is: a pure function of what was recorded, with one of four answers."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Literal, Protocol

import msgspec

from detectors.evidence import NOTHING, Evidence
from repro.base.probe import Event
from repro.record.requests import SpecCounts

Answer = Literal["clean", "anomaly", "unknown", "not_applicable"]
Layer = Literal["ordering", "canary", "divergence", "acceptance", "text"]


class Finding(msgspec.Struct, frozen=True):
    """One anomaly: the claim in words, and the evidence it rests on.

    `signature` is equal for findings of one cause (it holds no ids, times or pages).
    """

    detector: str
    layer: Layer
    claim: str
    signature: str
    request: str = ""
    at_us: float = 0.0
    count: int = 1  # equal occurrences folded into this one
    evidence: Evidence = NOTHING


_decoder = msgspec.json.Decoder(Finding, dec_hook=lambda kind, record: Evidence.of_record(record))


def decode_finding(line: bytes) -> Finding:
    """Return the finding of one line of JSON. Raises msgspec.DecodeError for a line that is none."""
    return _decoder.decode(line)


def by_cause(findings: Iterable[Finding]) -> dict[str, list[Finding]]:
    """Return the findings by signature, in the order of their first ones."""
    causes: dict[str, list[Finding]] = {}
    for finding in findings:
        causes.setdefault(finding.signature, []).append(finding)
    return causes


class Causes:
    """Findings while a detector makes them: of each cause a few with their evidence, the others counted."""

    def __init__(self, examples_max: int) -> None:
        self._examples_max = examples_max
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, list[Finding]] = {}

    def add(self, signature: str, finding: Callable[[], Finding]) -> bool:
        """Count one more of a cause; return whether it was made an example."""
        self._counts[signature] += 1
        examples = self._examples.setdefault(signature, [])
        if len(examples) == self._examples_max:
            return False
        examples.append(finding())
        return True

    def examples(self, signature: str) -> list[Finding]:
        """Return the examples of a cause."""
        return self._examples[signature]

    def findings(self) -> tuple[Finding, ...]:
        """Return the examples; the first of each cause counts for those that are none."""
        folded: list[Finding] = []
        for signature, (first, *others) in self._examples.items():
            folded += [msgspec.structs.replace(first, count=self._counts[signature] - len(others)), *others]
        return tuple(folded)


class Marks(msgspec.Struct, frozen=True):
    """The requests that a detector of events knows to be hit: the first stages of the funnel."""

    raced: Collection[str] = ()
    corrupted: Collection[str] = ()
    poisoned: Mapping[str, str] = {}  # request -> the request whose wrong read it inherited


class DetectorVerdict(msgspec.Struct, frozen=True):
    """What one detector answers about a run; `repro.record.verdict.RunVerdict` is what the run came to."""

    detector: str
    answer: Answer
    findings: tuple[Finding, ...] = ()
    why: str = ""  # set for unknown and not_applicable
    checked: int = 0  # how much it looked at: accesses, reads, requests, tokens
    marks: Marks = Marks()


class EventDetector(Protocol):
    """A detector over the event stream; live or from a file, in the recorded order."""

    name: str

    def feed(self, event: Event) -> None:
        """Take the next event."""

    def verdict(self) -> DetectorVerdict:
        """Return the answer about all events fed so far."""


class TextDetector(Protocol):
    """An online detector over one answer; a new instance per request.

    `feed` returns a finding the moment it is sure, at most one per kind and answer; the driver may
    abort the request then. `close` is called at the end and may still convict.
    """

    name: str

    def feed(self, text: str, tokens: tuple[int, ...] = (), logprobs: tuple[float, ...] = ()) -> Finding | None:
        """Take what the answer has grown by."""

    def close(self) -> Finding | None:
        """The answer is complete."""


class CountsDetector(Protocol):
    """An online detector over the counts of speculative decoding of one answer; a new instance per request.

    `feed` returns a finding the moment it is sure, at most one an answer; the driver may abort the request
    then. `close` is called at the end and may still convict.
    """

    name: str

    def feed(self, counts: SpecCounts) -> Finding | None:
        """Take the counts of the answer so far."""

    def close(self) -> Finding | None:
        """The answer is complete."""
