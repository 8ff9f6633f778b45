"""How a load is driven, and what came of it: plain data."""

from typing import Literal

import msgspec

from repro.base.errors import UsageError
from repro.load.faults import ClientFaults, no_faults
from repro.load.history import TokenCounter, characters_per_four
from repro.load.lag import Quantiles
from repro.load.shapes import Closed, Shape, check_shape

OnAnomaly = Literal["report", "abort-retry"]


class LoadPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about a load but the sessions and the server."""

    shape: Shape = Closed()
    concurrency: int = 16  # sessions under way at once, think time included, whatever the shape
    seed: int = 0
    time_scale: float = 1.0  # factor of gaps and recorded arrivals: 0.5 is twice as fast, 0 does not wait
    gap_max_s: float | None = None  # people leave for lunch; a replay needn't
    history: Literal["generated", "recorded"] = "generated"
    count_tokens: TokenCounter = characters_per_four
    context_tokens_max: int | None = None  # the model's limit; None: learnt when the server refuses
    answer_tokens_max: int = 1024  # the cap on recorded lengths
    answer_tokens_unknown: int = 256  # asked for where the trace has no length
    retries_max: int = 2  # a request that failed for a passing reason is sent again so often
    retry_after_s: float = 0.5  # doubled each time
    rate_max_per_s: float | None = None  # coarse ceiling on requests to a foreign server
    # Z.ai's service rule: an answer that a detector convicts while it streams is given up and asked for again.
    on_anomaly: OnAnomaly = "report"
    anomaly_retries_max: int = 1  # retries of one turn; its last answer is taken as it comes
    faults: ClientFaults = no_faults

    @property
    def answers_given_up_max(self) -> int:
        """Return how many convicted answers of one turn are given up."""
        return self.anomaly_retries_max if self.on_anomaly == "abort-retry" else 0

    def check(self) -> None:
        """Raise UsageError when a number makes no sense."""
        check_shape(self.shape)
        limits: list[tuple[str, float | None, float]] = [
            ("concurrency", self.concurrency, 1),
            ("time_scale", self.time_scale, 0),
            ("gap_max_s", self.gap_max_s, 0),
            ("context_tokens_max", self.context_tokens_max, 64),
            ("answer_tokens_max", self.answer_tokens_max, 1),
            ("answer_tokens_unknown", self.answer_tokens_unknown, 1),
            ("retries_max", self.retries_max, 0),
            ("retry_after_s", self.retry_after_s, 0),
            ("anomaly_retries_max", self.anomaly_retries_max, 0),
            ("rate_max_per_s", self.rate_max_per_s, 0.01),
        ]
        for name, value, least in limits:
            if value is not None and not least <= value < float("inf"):
                raise UsageError(f"load: {name} is {value}; expected at least {least}")


class LoadResult(msgspec.Struct, kw_only=True):
    """What came of a load. Requests were delivered one by one and are not repeated here."""

    sessions: int = 0
    sessions_done: int = 0
    sessions_not_started: int = 0
    requests: int = 0
    answered: int = 0
    aborted: int = 0
    errors: dict[str, int] = {}  # ErrorKind -> count
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    requests_cut: int = 0  # requests with a history that was cut to fit the model's limit
    dropped_turns: int = 0  # summed over the sessions
    dropped_characters: int = 0
    findings: int = 0
    duration_s: float = 0.0
    ttft: Quantiles = Quantiles()
    gaps: Quantiles = Quantiles()
    lag: Quantiles = Quantiles()
    interrupted: bool = False  # Ctrl-C or a cancelled task ended the load early
    target_lost: str = ""  # the last error of a server that stopped answering; "" for none
