"""Several hosts: a message is an edge, and what was not said is not known."""

import pytest

from detectors.pages.ordering import OrderingDetector
from detectors.pages.ownership import OwnershipDetector
from repro.base.probe import Access, HostMessage, HostSync, OpRef
from tests.detectors.events import World, judged

TIER = "D0.device"


def writes(world: World, worker: str, *, host: int, granted: int = 0) -> OpRef:
    """Emit a write of a prefill worker into page 3 of D0."""
    access = Access(True, TIER, "latent", 0, world.pages(3), "r", granted)
    return world.op(f"{worker}.transfer0", "transfer.write", access, host=host, by=worker)


def learns(world: World, host: str, clock: int, source: OpRef) -> None:
    world.events.append(HostSync(clock, source, "drained", world.now_us, host))


def says(world: World, source: str, sent: int, target: str, received: int) -> None:
    world.events.append(HostMessage("safe", source, sent, target, received, world.now_us))


def test_two_writes_are_ordered_by_drain_message_and_message() -> None:
    world = World()
    learns(world, "P0", 2, writes(world, "P0", host=1))
    says(world, "P0", 3, "D0", 10)
    says(world, "D0", 11, "P1", 20)
    writes(world, "P1", host=21)
    assert judged(OrderingDetector(), world.events).answer == "clean"


@pytest.mark.parametrize("missing", ["drain", "safe", "destination"])
def test_without_one_link_of_the_chain_they_race(missing: str) -> None:
    world = World()
    first = writes(world, "P0", host=1)
    if missing != "drain":
        learns(world, "P0", 2, first)
    if missing != "safe":
        says(world, "P0", 3, "D0", 10)
    if missing != "destination":
        says(world, "D0", 11, "P1", 20)
    writes(world, "P1", host=21)
    (finding,) = judged(OrderingDetector(), world.events).findings
    assert finding.signature.endswith("of D.device latent, no edge between P.transfer and P.transfer")
    assert finding.evidence.missing_edge == (
        "no message told host P1, before it enqueued transfer.write (layer 0), that transfer.write of P0.transfer0 "
        "had completed"
    )


def test_a_message_tells_what_was_known_when_it_was_sent_and_no_more() -> None:
    world = World()
    first = writes(world, "P0", host=1)
    learns(world, "P0", 5, first)
    says(world, "P0", 4, "P1", 20)  # sent before the drain, received after it
    writes(world, "P1", host=21)
    assert judged(OrderingDetector(), world.events).answer == "anomaly"


def test_what_was_enqueued_before_the_message_came_knows_nothing_of_it() -> None:
    world = World()
    learns(world, "P0", 2, writes(world, "P0", host=1))
    says(world, "P0", 3, "P1", 20)
    writes(world, "P1", host=19)
    assert judged(OrderingDetector(), world.events).answer == "anomaly"


def test_a_remote_write_belongs_to_the_owner_that_was_offered_the_pages() -> None:
    world = World()
    first = world.page_event("alloc", 3, owner="a", tier=TIER)
    world.page_event("free", 3, owner="a", tier=TIER)
    second = world.page_event("alloc", 3, owner="b", tier=TIER)
    writes(world, "P1", host=500, granted=second)
    assert judged(OwnershipDetector(), world.events).answer == "clean"
    writes(world, "P0", host=900, granted=first)  # whatever its own host's clock says
    (finding,) = judged(OwnershipDetector(), world.events).findings
    assert finding.signature == "ownership: transfer.write writes a D.device page of a newer owner"
