"""A request as the client saw it, and as a row of requests.parquet."""

import msgspec

WHOLE = ("stop", "length", "tool_calls")  # finishes of answers that nobody cut off


class SpecCounts(msgspec.Struct, frozen=True, gc=False):
    """Counts of speculative decoding in one answer so far, under SGLang's names."""

    completion_tokens: int = 0
    spec_verify_ct: int = 0  # forward passes that checked drafts
    spec_accept_token_num: int = 0  # drafted tokens that were accepted
    spec_draft_token_num: int = 0  # drafted tokens

    @property
    def accept_length(self) -> float:
        """Return the tokens a verify brought, its bonus token included; 0.0 before the first one."""
        return self.completion_tokens / self.spec_verify_ct if self.spec_verify_ct else 0.0

    @property
    def accept_rate(self) -> float:
        """Return which share of the drafted tokens was accepted; 0.0 before the first one."""
        return self.spec_accept_token_num / self.spec_draft_token_num if self.spec_draft_token_num else 0.0

    @property
    def drafts(self) -> float:
        """Return how many tokens were drafted for a verify."""
        return self.spec_draft_token_num / self.spec_verify_ct if self.spec_verify_ct else 0.0

    def since(self, earlier: "SpecCounts") -> "SpecCounts":
        """Return what has come since `earlier`."""
        return SpecCounts(
            self.completion_tokens - earlier.completion_tokens,
            self.spec_verify_ct - earlier.spec_verify_ct,
            self.spec_accept_token_num - earlier.spec_accept_token_num,
            self.spec_draft_token_num - earlier.spec_draft_token_num,
        )


class SentRequest(msgspec.Struct):
    """One request as the client saw it.

    Times are microseconds on the run's clock (virtual on the bundled stack), -1 when it never happened.
    """

    request: str
    session: str
    turn: int
    attempt: int = 0
    due_us: float = -1.0  # when the arrival plan wanted it sent
    sent_us: float = -1.0
    first_token_us: float = -1.0
    finished_us: float = -1.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_device_tokens: int = 0
    cached_host_tokens: int = 0
    dropped_turns: int = 0  # turns cut from the history to fit the model's limit
    dropped_characters: int = 0
    finish: str = ""  # stop | length | tool_calls | abort (ours) | disconnect | error
    error: str = ""
    text: str = ""  # the answer as text, tool calls rendered
    expected: str = ""  # the trace's recorded answer, "" when there is none
    tokens: list[int] = msgspec.field(default_factory=list)  # known on the bundled stack
    logprobs: list[float] = msgspec.field(default_factory=list)
    retry_of: str = ""  # the request that a detector convicted in its stream, and that was given up for this one
    spec_verify_ct: int = 0  # this and the next two as SpecCounts has them, 0 where the server tells none
    spec_accept_token_num: int = 0
    spec_draft_token_num: int = 0
    spec_window_rates: list[float] = msgspec.field(default_factory=list)  # accept rate of each 64 tokens

    @property
    def spec(self) -> SpecCounts:
        """Return the counts of speculative decoding; zeros except for the tokens where the server reports none."""
        return SpecCounts(
            self.completion_tokens, self.spec_verify_ct, self.spec_accept_token_num, self.spec_draft_token_num
        )


class RequestRecord(SentRequest):
    """One row of requests.parquet: a request, with the marks of the detectors and of the clean decode."""

    raced: bool = False  # an access of it conflicts with another without a happens-before edge
    corrupted: bool = False  # it read bytes that were not the expected ones at first hand
    poisoned: bool = False  # it read bytes that a corrupted request had written
    origin: str = ""  # the request whose wrong read it inherited
    acceptance: bool = False  # the acceptance detector convicts it
    # "" not decoded | same | diverged | other: a server asked again said something else, which may be rounding
    oracle: str = ""
    clean_text: str = ""
    clean_tokens: list[int] = msgspec.field(default_factory=list)
    first_difference: int = -1  # index of the first token that differs from the clean decode
    logit_gap: float = 0.0  # clean top-1 minus top-2 there
    visible: bool = False  # a text detector convicts it and the clean decode does not have it
    model_own: bool = msgspec.field(default=False, name="own")  # the clean decode has the text finding too
    detectors: list[str] = msgspec.field(default_factory=list)

    @property
    def suspect(self) -> bool:
        """Return whether any detector has something against this request."""
        return self.raced or self.corrupted or self.poisoned or bool(self.detectors)

    @classmethod
    def of(cls, sent: SentRequest) -> "RequestRecord":
        """Return the row of a request that nobody has judged yet."""
        return cls(**msgspec.structs.asdict(sent))
