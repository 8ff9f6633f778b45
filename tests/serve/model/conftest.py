"""Model tests compute on one thread unless they say otherwise: two on a busy core spin for each other."""

from collections.abc import Iterator

import pytest

from tests.serve.model.builders import threads


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Give every test one thread."""
    with threads(1):
        yield
