"""Who hears a load, and what a listener hears."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from repro.load.lag import Quantiles
from repro.record.requests import SentRequest, SpecCounts


class OnlineFinding(Protocol):
    """What an online detector finds; the driver only passes it on."""

    @property
    def detector(self) -> str:
        """The detector's name."""

    @property
    def claim(self) -> str:
        """What is wrong, in words."""


class TextDetector(Protocol):
    """An online detector over one answer, as `detectors.base.TextDetector` has it."""

    name: str

    def feed(self, text: str, tokens: tuple[int, ...] = (), logprobs: tuple[float, ...] = ()) -> OnlineFinding | None:
        """Take what the answer has grown by."""

    def close(self) -> OnlineFinding | None:
        """The answer is complete."""


class CountsDetector(Protocol):
    """An online detector over the counts of one answer, as `detectors.base.CountsDetector` has it."""

    name: str

    def feed(self, counts: SpecCounts) -> OnlineFinding | None:
        """Take the counts of the answer so far."""

    def close(self) -> OnlineFinding | None:
        """The answer is complete."""


class Progress(msgspec.Struct, frozen=True):
    """How far the load is: one snapshot."""

    at_s: float  # seconds on the loop's clock since the load began
    sessions: int
    sessions_active: int
    sessions_done: int
    requests_active: int
    requests_done: int
    errors: int
    aborted: int
    tokens: int  # all answers so far, unfinished ones too, as exactly as the streams say
    tokens_per_s: float  # over the whole load so far
    ttft: Quantiles
    lag: Quantiles
    anomalies: int


class LoadListener:
    """Listener of a running load. Override what you need: each method here does nothing.

    What a method raises ends the load and comes out of it.
    """

    def text_detectors(self, request: str, prompt: str) -> Sequence[TextDetector]:
        """Return fresh detectors for the answer of a request that is about to be sent; `prompt` is its whole text."""
        return ()

    def counts_detectors(self, request: str) -> Sequence[CountsDetector]:
        """Return fresh detectors for the counts of speculative decoding in the answer."""
        return ()

    def on_finding(self, request: str, finding: OnlineFinding) -> None:
        """Take what a detector of an answer found in its stream, or at its end."""

    def on_request(self, request: SentRequest) -> None:
        """Take a request that is over, however it went; all its findings came before."""

    def on_progress(self, snapshot: Progress) -> None:
        """Take a snapshot of the load."""

    def on_found(self, counts: Mapping[str, int], first_claim: str) -> None:
        """Take how many findings each detector of events has so far, and what the first of all claims."""

    def on_check(self, number: int, total: int) -> None:
        """Take how many answers have been asked for again, or decoded again, after the load."""


SILENT = LoadListener()  # for a load without a listener
