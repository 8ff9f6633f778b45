"""Evidence is written with the keys of its kind, and a record reads back as that kind."""

from typing import Any

import msgspec
import pytest

from detectors.base import Finding, decode_finding
from detectors.evidence import (
    ConfidenceScore,
    DraftCounts,
    Evidence,
    Kind,
    LoopSpan,
    Operation,
    OtherEvidence,
    PageChange,
    PagePair,
    RerunScore,
)
from tests.builders import canary_finding, divergence_finding, race_evidence, race_finding, text_finding

COUNTS = DraftCounts(1.2, None, 1.2, 0.1, (0.1, 0.0), 640, 533, 107, 1066)


def written(evidence: Evidence) -> Any:
    return msgspec.json.decode(msgspec.json.encode(evidence))


@pytest.mark.parametrize(
    "evidence",
    [
        race_evidence(),
        race_evidence(first=Operation("load", 0, write=True)),
        PageChange(5, 1, "device", ()),
        canary_finding().evidence,
        divergence_finding().evidence,
        text_finding().evidence,
        RerunScore(4.0, 1.0, 3, "alone"),
        ConfidenceScore(4.0, 1.0, 3, 0, (1.0, 2.0)),
        COUNTS,
        msgspec.structs.replace(COUNTS, limit=1.4, since_tokens=64),
        LoopSpan("ab", 2, 40.0, 80, 200),
        LoopSpan((5, 6), 2, 40.0, 80, 200),
    ],
)
def test_a_finding_reads_back_with_evidence_of_its_kind(evidence: Kind) -> None:
    finding = race_finding(evidence=evidence)
    again = decode_finding(msgspec.json.encode(finding))
    assert again == finding and type(again.evidence) is type(evidence)


def test_the_two_operations_of_a_race_stand_in_the_order_in_which_they_were_enqueued() -> None:
    first, second = race_evidence().first, race_evidence().second
    pair = race_evidence(first=first, second=msgspec.structs.replace(second, enqueued_us=1.0))
    assert pair.operations == (pair.first, pair.second)  # one of the two times is not known: the earlier start is first
    later = msgspec.structs.replace(first, enqueued_us=2.0)
    assert msgspec.structs.replace(pair, first=later).operations == (pair.second, later)


def test_what_is_not_known_of_an_operation_is_not_written() -> None:
    dropped = written(race_evidence(first=Operation("load", 0, write=True)))["first"]
    assert dropped == {"stream": "load", "index": 0, "write": True}
    whole = Operation("load", 5, "copy", -1, 0, "", 0.0, 1.0, 2.0, False)
    assert list(written(race_evidence(first=whole))["first"]) == list(Operation.__struct_fields__)


def test_where_the_change_began_is_written_only_for_a_change() -> None:
    assert "since_tokens" not in written(COUNTS)
    assert written(msgspec.structs.replace(COUNTS, since_tokens=0))["since_tokens"] == 0


def test_evidence_of_no_kind_is_held_as_it_was_written() -> None:
    line = b'{"detector":"d","layer":"text","claim":"c","signature":"s","evidence":{"page":1,"colour":"red"}}'
    finding = decode_finding(line)
    assert finding.evidence == OtherEvidence(page=1, colour="red") and not finding.evidence.operations
    assert msgspec.json.decode(msgspec.json.encode(finding))["evidence"] == {"page": 1, "colour": "red"}
    assert decode_finding(b'{"detector":"d","layer":"text","claim":"c","signature":"s"}') == Finding(
        "d", "text", "c", "s"
    )


def test_no_two_kinds_have_the_same_keys() -> None:
    keys = [frozenset(kind.__struct_fields__) for kind in Kind.__subclasses__()]
    assert len(set(keys)) == len(keys) and PagePair in Kind.__subclasses__()
