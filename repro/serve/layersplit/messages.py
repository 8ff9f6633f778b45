"""The messages that the scheduler's process sends to the ranks, in order, and their answer."""

from dataclasses import dataclass

from repro.serve.kv.pool import Pages
from repro.serve.layersplit.sequence import TouchedPages
from repro.serve.sched.batch import Member
from repro.serve.sched.rows import Seat


@dataclass(frozen=True)
class Step:
    """Compute a step. `load` is the number of the load-back that brings its pages, 0 for none."""

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
    """Copy device pages to the host, as they are after the steps sent before this message."""

    number: int
    source: Pages
    target: Pages


@dataclass(frozen=True)
class Stop:
    """The last message."""


@dataclass(frozen=True)
class Ended:
    """A rank's answer: its part of a transfer has ended."""

    number: int


Message = Step | Load | Write | Stop
