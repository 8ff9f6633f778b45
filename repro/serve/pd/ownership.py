"""Which worker may touch a request's destination pages, and when they may be given to another request.

    decode worker                                  prefill worker

    allocated ── destination ─────────────────────> prefill queued
                                                        │ first chunk
                                                    write issued ... write completed
    (adopted) <───────────────────────── done ──────────┘
    abort requested ── abort ─────────────────────> abort observed
                                                        │ no write issued, or all issued ones completed
    safe to reclaim <──────────────────── safe ──── drained
        │
    reusable                    no answer: quarantined

A posted write can't be taken back, and it lands without a check. So only the side that issued the writes
can say that the pages are safe; until then no other request gets them.
"""

from enum import StrEnum


class Stage(StrEnum):
    """Where a transfer stands, as one side knows it."""

    ALLOCATED = "allocated"
    PREFILL_QUEUED = "prefill queued"
    WRITE_ISSUED = "write issued"
    WRITE_COMPLETED = "write completed"
    ABORT_REQUESTED = "abort requested"
    ABORT_OBSERVED = "abort observed"
    DRAINED = "drained"
    SAFE_TO_RECLAIM = "safe to reclaim"
    REUSABLE = "reusable"
    QUARANTINED = "quarantined"


DECODE_SIDE: dict[Stage, frozenset[Stage]] = {
    Stage.ALLOCATED: frozenset({Stage.PREFILL_QUEUED, Stage.REUSABLE}),  # reusable: the pages were never offered
    Stage.PREFILL_QUEUED: frozenset({Stage.WRITE_COMPLETED, Stage.ABORT_REQUESTED, Stage.SAFE_TO_RECLAIM}),
    Stage.ABORT_REQUESTED: frozenset({Stage.SAFE_TO_RECLAIM, Stage.QUARANTINED}),
    Stage.QUARANTINED: frozenset({Stage.SAFE_TO_RECLAIM}),
    Stage.SAFE_TO_RECLAIM: frozenset({Stage.REUSABLE}),
}
PREFILL_SIDE: dict[Stage, frozenset[Stage]] = {
    Stage.PREFILL_QUEUED: frozenset({Stage.WRITE_ISSUED, Stage.ABORT_OBSERVED}),
    Stage.WRITE_ISSUED: frozenset({Stage.WRITE_COMPLETED, Stage.ABORT_OBSERVED}),
    Stage.ABORT_OBSERVED: frozenset({Stage.DRAINED}),
}


class Ownership:
    """The stage of one transfer on one side."""

    def __init__(self, side: dict[Stage, frozenset[Stage]], first: Stage) -> None:
        self._side = side
        self.stage = first

    def move(self, to: Stage) -> None:
        """Go on to a stage. Raises AssertionError when this side can't get there from where it is."""
        assert to in self._side.get(self.stage, ()), f"a transfer goes from {self.stage} to {to}"
        self.stage = to
