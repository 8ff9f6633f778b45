import pytest
from tokenizers import Tokenizer

from repro.serve.server.chat import checkpoint_text
from tests.serve.server.fake import FakeEngine


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_str(checkpoint_text("tokenizer.json"))


@pytest.fixture
def engine(tokenizer: Tokenizer) -> FakeEngine:
    return FakeEngine(tokenizer)
