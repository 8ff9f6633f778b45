"""What the scheduler's process tells the ranks, in order, and what they answer."""

from dataclasses import dataclass

from repro.serve.kv.pool import Pages
from repro.serve.layersplit.sequence import TouchedPages
from repro.serve.sched.batch import Member
from repro.serve.sched.rows import Seat


@dataclass(frozen=True)
class Step:
    """Compute a step. `load` is the load-back whose pages it reads, 0: none."""

    number: int
    prefill: bool
    members: tuple[Member, ...]
    block_pages: tuple[tuple[int, int, Pages], ...]  # see `sched.rows.Staging`
    seats: tuple[Seat, ...]
    load: int
    touched: TouchedPages


@dataclass(frozen=True)
class Load:
    """Load host pages into device pages, behind the last step that used those."""

    number: int
    source: Pages
    target: Pages
    last_step: int


@dataclass(frozen=True)
class Write:
    """Back device pages up, as the steps told of so far leave them."""

    number: int
    source: Pages
    target: Pages


@dataclass(frozen=True)
class Stop:
    """Nothing more will come."""


@dataclass(frozen=True)
class Ended:
    """A rank's answer: its part of a transfer has ended."""

    number: int


Message = Step | Load | Write | Stop
