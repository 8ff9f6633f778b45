"""What the requests of a run add up to."""

from repro.record.counts import Funnel, funnel_of
from tests.builders import make_request


def test_the_funnel_of_the_verdict_is_counted_from_the_requests() -> None:
    records = [
        make_request("a", raced=True, corrupted=True, oracle="diverged", visible=True),
        make_request("b", poisoned=True, origin="a"),
        make_request("c", model_own=True),
    ]
    assert funnel_of(records) == Funnel(
        requests=3, raced=1, corrupted=1, poisoned=1, diverged=1, acceptance=0, visible=1, model_own=1
    )
