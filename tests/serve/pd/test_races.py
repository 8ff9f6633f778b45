"""Each defect of the transfer plane is found, and the same load with the guard in place is silent."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from repro.fault.defects import DEFECTS
from repro.fault.plan import Fault
from repro.serve.guards import Guards
from tests.serve.pd.builders import PdStack
from tests.serve.pd.storm import LEGAL, fault, storm

REQUESTS = 100


@dataclass(frozen=True)
class Case:
    """A load under which a defect shows, and what finds it."""

    faults: tuple[Fault, ...]
    finds: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)


CASES = {
    "pd_reuse_before_drain": Case(LEGAL["late writes"], ("ordering",)),
    "pd_ack_means_received": Case(LEGAL["late writes"], ("ordering",)),
    "pd_producer_timeout": Case(
        (fault("transfer.write", "delay", 0.02, 6e6),),
        ("ordering", "ownership"),
        {"transfer_timeout_s": 20.0, "destination_timeout_s": 20.0},
    ),
    "pd_chunk_read_early": Case((fault("forward.feed_forward", "delay", 0.2, 20_000),), ("ordering", "canary")),
    "pd_metadata_slot_reuse": Case(
        (fault("transfer.write_slot", "delay", 0.3, 300_000),), ("ordering",), {"slots": 3, "impatient": 0.5}
    ),
    "pd_state_failed_aux_ok": Case((fault("transfer.index", "fail", 0.01),), ("canary",)),
}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("defect", CASES)
def test_the_defect_is_found_and_the_guard_is_silent(defect: str, seed: int) -> None:
    case = CASES[defect]
    found, _ = storm(REQUESTS, guards=DEFECTS[defect].apply(Guards()), faults=case.faults, seed=seed, **case.settings)
    for name in case.finds:
        assert findings(found)[name], f"{name} found nothing"
    guarded, seen = storm(REQUESTS, faults=case.faults, seed=seed, **case.settings)
    guarded.assert_clean()
    assert seen.wrong == 0
    assert all(counts.fired for counts in guarded.injector.counts.values())


def findings(stack: PdStack) -> dict[str, int]:
    """Return how much each detector found."""
    verdicts = [detector.verdict() for detector in (stack.ordering, stack.ownership, stack.canary)]
    return {verdict.detector: len(verdict.findings) for verdict in verdicts}
