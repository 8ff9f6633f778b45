"""What is kept of each request: one row of requests.parquet."""

import msgspec


class RequestRecord(msgspec.Struct):
    """One request as the client saw it, and what the judges said about it afterwards.

    Times are microseconds on the run's clock (virtual on the bundled stack), -1 when it never happened.
    The client fills the first block, `run.py` the second from detectors and oracle.
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

    raced: bool = False  # an access of it conflicts with another without a happens-before edge
    corrupted: bool = False  # it read bytes that were not the expected ones at first hand
    poisoned: bool = False  # it read bytes that a corrupted request had written
    origin: str = ""  # the request whose wrong read it inherited
    # "" not decoded | same | diverged | other: a server asked again said something else, which may be rounding
    oracle: str = ""
    clean_text: str = ""
    clean_tokens: list[int] = msgspec.field(default_factory=list)
    first_difference: int = -1  # index of the first token that differs from the clean decode
    logit_gap: float = 0.0  # clean top-1 minus top-2 there
    visible: bool = False  # a text detector convicts it and the clean decode does not have it
    own: bool = False  # a text finding that the clean decode has too
    detectors: list[str] = msgspec.field(default_factory=list)

    @property
    def suspect(self) -> bool:
        """Return whether any detector has something against this request."""
        return self.raced or self.corrupted or self.poisoned or bool(self.detectors)
