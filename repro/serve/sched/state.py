"""The state that the parts of the scheduler share: all requests of an engine by stage, its free rows, its counts."""

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from repro.base.probe import Probes, RequestEvent
from repro.serve.config import EngineConfig
from repro.serve.device.base import Device
from repro.serve.kv.radix.node import Node
from repro.serve.sched.request import Decode, Request
from repro.serve.sched.rows import Seat, Staging
from repro.serve.sched.sampling import Sampled


class Vocabulary(NamedTuple):
    """What the scheduler knows of the model's tokens."""

    size: int
    decode: Decode
    end_tokens: frozenset[int]  # those that end an answer


class Arrival(NamedTuple):
    """A request whose prompt was computed elsewhere, with the first token of its answer."""

    request: Request
    first: Sampled


@dataclass
class Counts:
    """Totals since the engine began."""

    steps: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    cached_device_tokens: int = 0
    aborted_requests: int = 0
    verify_steps: int = 0  # one for each member of each step
    accepted_drafts: int = 0


@dataclass(eq=False)
class Requests:
    """All requests of one engine, by stage.

    waiting ─── admission ───> running ─── release ───> finished
       ^                        │   └──> held ─────────────^
       └─────── retract ────────┘
    arrived ────────────────> running
    """

    config: EngineConfig
    device: Device
    probes: Probes
    waiting: deque[Request] = field(default_factory=deque)
    running: list[Request] = field(default_factory=list)  # oldest admission first
    held: list[Request] = field(default_factory=list)  # prefilled here; their pages are being sent to where they decode
    arrived: deque[Arrival] = field(default_factory=deque)  # prefilled elsewhere, without a row
    by_id: dict[str, Request] = field(default_factory=dict)  # all but the finished ones
    counts: Counts = field(default_factory=Counts)

    def __post_init__(self) -> None:
        self.free_rows = list(range(self.config.rows - 1, -1, -1))

    def seat(self, request: Request, node: Node, staging: Staging, first_token: int | None = None) -> None:
        """Give a request that has its pages a row, and let the step's upload bring both to the device."""
        request.state = "running"
        request.row = self.free_rows.pop()
        request.node = node
        staging.pages.append((request.row, 0, np.asarray(request.pages, np.int32)))
        staging.prompts.append(Seat(request.row, request.prefill, request.limit, first_token))
        self.running.append(request)
        self.counts.prompt_tokens += len(request.prompt)

    def leave_row(self, request: Request) -> None:
        """Take the row of a running request; its stage comes next."""
        self.running.remove(request)
        self.free_rows.append(request.row)

    def emit(self, what: str, request: Request, detail: dict[str, int | float | str] | None = None) -> None:
        """Emit an event of a request."""
        self.probes.emit(RequestEvent(what, request.id, self.device.now_us, detail or {}))
