"""Counts what a load does, as it does it."""

from collections.abc import Callable

from repro.load.answer import Answer
from repro.load.client import ChatClient
from repro.load.listener import Progress
from repro.load.plan import LoadResult
from repro.record.requests import SentRequest

NO_ANSWER_KINDS = ("refused", "died", "timeout")


class Tally:
    """The sums of a load; `snapshot` and `result` read them."""

    def __init__(self, client: ChatClient, clock: Callable[[], float], sessions: int) -> None:
        self.sessions = sessions
        self.sessions_started = 0
        self.sessions_done = 0
        self.requests_active = 0
        self.pieces = 0
        self.findings = 0
        self.silent_failures = 0  # requests in a row that got no answer at all
        self.last_error = ""
        self._client = client
        self._clock = clock
        self._started_s = clock()
        self._requests = self._answered = self._aborted = self._retries = 0
        self._prompt_tokens = self._completion_tokens = self._requests_cut = 0
        self._errors: dict[str, int] = {}
        self._dropped: dict[str, tuple[int, int]] = {}  # session -> (turns, characters)

    def count(self, record: SentRequest, answer: Answer) -> None:
        """A request is over."""
        self.requests_active -= 1
        self._requests += 1
        self._retries += record.attempt > 0
        self._prompt_tokens += record.prompt_tokens
        self._completion_tokens += record.completion_tokens
        if record.dropped_turns or record.dropped_characters:
            self._requests_cut += 1
            self._dropped[record.session] = (record.dropped_turns, record.dropped_characters)
        if answer.error_kind:
            self._errors[answer.error_kind] = self._errors.get(answer.error_kind, 0) + 1
            self.last_error = record.error
        elif record.finish in ("abort", "disconnect"):
            self._aborted += 1
        else:
            self._answered += 1
        silent = answer.error_kind in NO_ANSWER_KINDS and answer.first_s < 0
        self.silent_failures = self.silent_failures + 1 if silent else 0

    def snapshot(self) -> Progress:
        """Return how far the load is."""
        at_s = self._clock() - self._started_s
        return Progress(
            at_s=at_s,
            sessions=self.sessions,
            sessions_active=self.sessions_started - self.sessions_done,
            sessions_done=self.sessions_done,
            requests_active=self.requests_active,
            requests_done=self._requests,
            errors=sum(self._errors.values()),
            aborted=self._aborted,
            tokens=self.pieces,
            tokens_per_s=self.pieces / at_s if at_s > 0 else 0.0,
            ttft=self._client.ttft.summary(),
            lag=self._client.lag.histogram.summary(),
            anomalies=self.findings,
        )

    def result(self, *, interrupted: bool, target_lost: str) -> LoadResult:
        """Return the sums."""
        return LoadResult(
            sessions=self.sessions,
            sessions_done=self.sessions_done,
            sessions_not_started=self.sessions - self.sessions_started,
            requests=self._requests,
            answered=self._answered,
            aborted=self._aborted,
            errors=dict(sorted(self._errors.items())),
            retries=self._retries,
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens,
            requests_cut=self._requests_cut,
            dropped_turns=sum(turns for turns, _ in self._dropped.values()),
            dropped_characters=sum(characters for _, characters in self._dropped.values()),
            findings=self.findings,
            duration_s=self._clock() - self._started_s,
            ttft=self._client.ttft.summary(),
            gaps=self._client.gaps.summary(),
            lag=self._client.lag.histogram.summary(),
            interrupted=interrupted,
            target_lost=target_lost,
        )
