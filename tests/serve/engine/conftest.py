"""Engine tests compute on one thread; those with tensors share the bundled checkpoint."""

from collections.abc import Iterator

import pytest

from repro.serve.config import EngineConfig
from repro.serve.engine import LoadedModel, load
from repro.serve.server.chat import ChatEncoder, checkpoint_text
from tests.serve.model.builders import threads


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Give every test one thread."""
    with threads(1):
        yield


@pytest.fixture(scope="session")
def bundled() -> LoadedModel:
    """Return the bundled checkpoint, loaded once."""
    return load(EngineConfig(), ChatEncoder(checkpoint_text("tokenizer.json")).decode)
