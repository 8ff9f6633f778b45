"""Counts what a load does, as it does it."""

from collections.abc import Callable

from repro.load.answer import Answer
from repro.load.client import ChatClient
from repro.load.listener import Progress
from repro.load.plan import LoadResult
from repro.record.requests import SentRequest

NO_ANSWER_KINDS = ("refused", "died", "timeout")


class LoadTally:
    """The sums of a load. The driver adds to `result`; `snapshot` and `closed` read it."""

    def __init__(self, client: ChatClient, clock: Callable[[], float], sessions: int) -> None:
        self.result = LoadResult(sessions=sessions, sessions_not_started=sessions)
        self.requests_active = 0
        self.pieces = 0
        self.silent_failures = 0  # requests in a row that got no answer at all
        self.last_error = ""
        self._client = client
        self._clock = clock
        self._started_s = clock()
        self._dropped: dict[str, tuple[int, int]] = {}  # session -> (turns, characters)

    def count(self, request: SentRequest, answer: Answer) -> None:
        """A request is over."""
        result = self.result
        self.requests_active -= 1
        result.requests += 1
        result.retries += request.attempt > 0
        result.prompt_tokens += request.prompt_tokens
        result.completion_tokens += request.completion_tokens
        if request.dropped_turns or request.dropped_characters:
            result.requests_cut += 1
            self._dropped[request.session] = (request.dropped_turns, request.dropped_characters)
        if answer.error_kind:
            result.errors[answer.error_kind] = result.errors.get(answer.error_kind, 0) + 1
            self.last_error = request.error
        elif request.finish in ("abort", "disconnect"):
            result.aborted += 1
        else:
            result.answered += 1
        silent = answer.error_kind in NO_ANSWER_KINDS and answer.first_s < 0
        self.silent_failures = self.silent_failures + 1 if silent else 0

    def snapshot(self) -> Progress:
        """Return how far the load is."""
        result, at_s = self.result, self._clock() - self._started_s
        return Progress(
            at_s=at_s,
            sessions=result.sessions,
            sessions_active=result.sessions - result.sessions_not_started - result.sessions_done,
            sessions_done=result.sessions_done,
            requests_active=self.requests_active,
            requests_done=result.requests,
            errors=sum(result.errors.values()),
            aborted=result.aborted,
            tokens=self.pieces,
            tokens_per_s=self.pieces / at_s if at_s > 0 else 0.0,
            ttft=self._client.ttft.summary(),
            lag=self._client.lag.histogram.summary(),
            anomalies=result.findings,
        )

    def closed(self, *, interrupted: bool, target_lost: str) -> LoadResult:
        """Return the sums of a load that is over."""
        result = self.result
        result.errors = dict(sorted(result.errors.items()))
        result.dropped_turns = sum(turns for turns, _ in self._dropped.values())
        result.dropped_characters = sum(characters for _, characters in self._dropped.values())
        result.duration_s = self._clock() - self._started_s
        result.ttft, result.gaps = self._client.ttft.summary(), self._client.gaps.summary()
        result.lag = self._client.lag.histogram.summary()
        result.interrupted, result.target_lost = interrupted, target_lost
        return result
