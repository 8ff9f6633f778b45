"""The correct stack under every legal fault of the transfer plane."""

import pytest

from tests.serve.pd.storm import LEGAL, storm

REQUESTS = 150


@pytest.mark.parametrize("name", LEGAL)
def test_the_correct_stack_survives(name: str) -> None:
    stack, seen = storm(REQUESTS, faults=LEGAL[name], seed=len(name))
    assert seen.ends.total() == REQUESTS
    assert seen.wrong == 0
    assert seen.ends["length"] > REQUESTS / 4
    stack.assert_clean()
    for counts in stack.injector.counts.values():
        assert counts.fired or counts.reached < 100
