"""Events as lines, and what a fingerprint depends on."""

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repro.base.errors import RecordError
from repro.base.probe import Access, Burst, FaultEvent, Part, RequestEvent, Tokens
from repro.record.events import Fingerprint, canonical, decode_event, encode_line, fingerprint_of
from tests.builders import make_op, race_events, race_finding

times = st.floats(min_value=0, max_value=1e15, allow_nan=False)


def test_every_kind_of_event_reads_back_equal() -> None:
    for event in race_events():
        assert decode_event(encode_line(event)) == event


@given(times, times, st.text())
def test_a_line_read_and_written_again_is_the_same_line(start_us: float, end_us: float, name: str) -> None:
    line = encode_line(make_op(start_us=start_us, end_us=end_us, name=name))
    assert encode_line(decode_event(line)) == line
    assert b"\n" not in line


def test_a_log_probability_that_is_not_a_number_stays_readable() -> None:
    event = decode_event(encode_line(Tokens("r", (1, 2), (math.nan, -0.5), 3.0)))
    assert isinstance(event, Tokens)
    assert math.isnan(event.logprobs[0]) and event.logprobs[1] == -0.5 and event.ids == (1, 2)


def test_a_lone_surrogate_becomes_a_visible_escape() -> None:
    event = decode_event(encode_line(RequestEvent("aborted", "r", 1.0, {"why": "\ud800!"})))
    assert isinstance(event, RequestEvent) and event.detail["why"] == "\\ud800!"


@pytest.mark.parametrize("line", [b"", b"{", b'{"e":"what"}', b'{"e":"op"}', b"\xff\xfe", b'{"e":null}'])
def test_a_line_that_is_no_event_is_refused(line: bytes) -> None:
    with pytest.raises(RecordError, match="no event"):
        decode_event(line)


@given(st.text(), st.text(), st.text(), st.lists(st.floats(), max_size=4))
def test_the_fingerprint_takes_the_line_of_the_event_without_what_is_left_out(
    site: str, name: str, request: str, logprobs: list[float]
) -> None:
    part = Part(name, 0, 1.0, 2.0, 3.0, (Access(True, "device", "latent", 0, 1, request),))
    burst = Burst(name, 1, 2, 3, (site, '],"parts":', site), (part, part, part), requests=(request,))
    op = make_op(stream=name, site=site, name=name, requests=(request,))
    tokens = Tokens(request, (1, 2), tuple(logprobs), 3.0)
    assert canonical(op) == encode_line(msgspec.structs.replace(op, site=""))
    assert canonical(burst) == encode_line(msgspec.structs.replace(burst, sites=()))
    assert canonical(tokens) == encode_line(msgspec.structs.replace(tokens, logprobs=()))


@pytest.mark.parametrize("site", ["", '"', "\\", '","host":', '\\","host":1', '"site":"', "\ud800.py:1"])
def test_no_source_line_passes_for_an_end_of_what_is_left_out(site: str) -> None:
    op = make_op(site=site)
    assert canonical(op) == encode_line(msgspec.structs.replace(op, site=""))
    burst = Burst("s", 1, 2, 3, (site, site), (Part("n", 0, 1.0, 2.0, 3.0),) * 2)
    assert canonical(burst) == encode_line(msgspec.structs.replace(burst, sites=()))


def test_the_source_line_and_log_probabilities_do_not_enter_the_fingerprint() -> None:
    op, tokens = make_op(), Tokens("r", (1,), (-0.25,), 2.0)
    same = [
        msgspec.structs.replace(op, site="elsewhere.py:1"),
        msgspec.structs.replace(tokens, logprobs=(-0.3,)),
    ]
    assert fingerprint_of([op, tokens]) == fingerprint_of(same)


@pytest.mark.parametrize(
    "other",
    [
        make_op(end_us=90.0000001),
        make_op(index=1),
        make_op(stream="load"),
        make_op(layer=3),
        make_op(requests=("r",)),
        FaultEvent("f", "p", 1.0),
    ],
)
def test_a_time_an_operation_or_a_fault_changes_the_fingerprint(other: object) -> None:
    assert fingerprint_of([make_op()]) != fingerprint_of([other])  # type: ignore[list-item]


def test_order_and_findings_enter_the_fingerprint_and_prose_does_not() -> None:
    a, b = make_op(index=0), make_op(index=1)
    assert fingerprint_of([a, b]) != fingerprint_of([b, a])
    finding = race_finding()
    assert fingerprint_of([a]) != fingerprint_of([a], [finding])
    reworded = msgspec.structs.replace(finding, claim="in other words")
    assert fingerprint_of([a], [finding]) == fingerprint_of([a], [reworded])
    assert fingerprint_of([a], [finding]) != fingerprint_of([a], [race_finding(count=15)])


def test_two_events_cannot_pass_for_one() -> None:
    one, two = Fingerprint(), Fingerprint()
    one.add(RequestEvent("a", "b", 1.0))
    two.add(RequestEvent("a", "b", 1.0))
    two.add(RequestEvent("a", "b", 1.0))
    assert one.hexdigest() != two.hexdigest()
