"""Bad reads: first-hand ones corrupt, inherited ones poison and name their origin."""

from detectors.base import DetectorVerdict
from detectors.pages.canary import EXAMPLES_MAX, CanaryDetector
from tests.detectors.events import World, judged, only


def answer(world: World) -> DetectorVerdict:
    return judged(CanaryDetector(), world.events)


def wrong_read(world: World, request: str, *, origin: int = 0) -> int:
    """Let a read of `request` find wrong bytes and end; return the bad read's id."""
    number = world.bad_read(world.next_ref("compute"), request, origin=origin)
    world.op("compute", "forward.index", world.access("read", 3, request=request, layer=2))
    return number


def test_right_reads_are_clean_and_counted() -> None:
    world = World()
    world.read("compute", 3, request="a")
    verdict = answer(world)
    assert (verdict.answer, verdict.checked) == ("clean", 1)


def test_a_first_hand_wrong_read_corrupts_its_request() -> None:
    world = World()
    wrong_read(world, "a")
    detector = CanaryDetector()
    finding = only(judged(detector, world.events))
    assert finding.claim == (
        "a: forward.index, layer 2, read 64 index rows that are not its own prefix, from position 128 on"
    )
    assert finding.signature == "canary: forward.index reads index rows: foreign bytes"
    assert (finding.request, finding.evidence.origin) == ("a", "")
    assert detector.corrupted == {"a": 1}
    assert detector.poisoned == {}


def test_a_tainted_read_poisons_the_reader_and_names_the_origin() -> None:
    world = World()
    origin = wrong_read(world, "a")
    wrong_read(world, "b", origin=origin)
    detector = CanaryDetector()
    verdict = judged(detector, world.events)
    first, second = verdict.findings
    assert second.claim.startswith("b: forward.index, layer 2, read 64 index rows that a stored from wrong bytes")
    assert second.signature == "canary: forward.index reads index rows: taint"
    assert second.evidence.origin == "a"
    assert detector.corrupted == {"a": 1}
    assert detector.poisoned == {"b": "a"}


def test_meeting_ones_own_taint_again_poisons_nobody() -> None:
    world = World()
    origin = wrong_read(world, "a")
    wrong_read(world, "a", origin=origin)
    detector = CanaryDetector()
    judged(detector, world.events)
    assert detector.poisoned == {}


def test_an_origin_that_the_record_does_not_hold_is_said_so() -> None:
    world = World()
    wrong_read(world, "b", origin=77)
    detector = CanaryDetector()
    assert "that an earlier request stored" in only(judged(detector, world.events)).claim
    assert detector.poisoned == {"b": "an earlier request"}


def test_a_run_that_broke_off_in_the_wrong_read_is_an_anomaly_all_the_same() -> None:
    world = World()
    world.read("compute", 3, request="a")
    world.bad_read(world.next_ref("compute"), "a")
    finding = only(answer(world))
    assert "an operation of stream compute" in finding.claim


def test_asking_for_the_verdict_twice_counts_nothing_twice() -> None:
    world = World()
    world.bad_read(world.next_ref("compute"), "a")
    detector = CanaryDetector()
    assert judged(detector, world.events) == detector.verdict()


def test_bad_reads_of_two_operations_in_flight_find_their_own() -> None:
    world = World()
    world.bad_read(world.next_ref("compute"), "a", layer=1)
    world.bad_read(world.next_ref("other"), "b", layer=2)
    world.op("other", "other.op", world.access("read", 3, request="b"))
    world.op("compute", "compute.op", world.access("read", 3, request="a"))
    by_request = {finding.request: finding.evidence.op for finding in answer(world).findings}
    assert by_request == {"a": "compute.op", "b": "other.op"}


def test_equal_findings_are_counted_and_only_some_keep_their_evidence() -> None:
    world = World()
    for number in range(12):
        wrong_read(world, f"r{number}")
    verdict = answer(world)
    assert len(verdict.findings) == EXAMPLES_MAX
    assert sum(finding.count for finding in verdict.findings) == 12


def test_copies_check_no_stamps_so_they_alone_are_not_applicable() -> None:
    world = World()
    world.op("write", "writeback.copy_layer", world.access("read", 3))
    verdict = answer(world)
    assert (verdict.answer, verdict.checked) == ("not_applicable", 0)
    assert "keeps no stamps" in verdict.why
