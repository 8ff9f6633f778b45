"""The clean decode: what the model says to a prompt alone, and where an answer leaves it."""

from collections.abc import Iterator

import pytest
import torch

from repro.run.checkpoint import Checkpoint, load_checkpoint
from repro.run.judge.clean_decode import CleanDecoder
from repro.serve.config import EngineConfig
from repro.serve.types import GenerateRequest, SamplingParams

TEXT = "def read(path):\n    return path.read_text()\n\n\ndef write(path, text):\n    path.write_text(text)\n\n\n" * 3
CONTEXT_TOKENS = 512


@pytest.fixture(scope="module")
def checkpoint() -> Iterator[Checkpoint]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield load_checkpoint(EngineConfig())
    torch.set_num_threads(before)


def decoder(checkpoint: Checkpoint, *, ends: frozenset[int] | None = None) -> CleanDecoder:
    assert checkpoint.model.weights is not None
    eos = checkpoint.model.eos if ends is None else ends
    return CleanDecoder(checkpoint.model.weights, CONTEXT_TOKENS, eos)


def ask(checkpoint: Checkpoint, text: str = TEXT, **sampling: object) -> GenerateRequest:
    chosen = SamplingParams(**({"max_tokens": 12} | sampling))  # type: ignore[arg-type]
    return GenerateRequest("r", tuple(checkpoint.encoder.encode_text(text)), chosen)


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "seed": 5}])
def test_the_answer_of_a_lone_decode_checks_as_the_same(checkpoint: Checkpoint, sampling: dict[str, object]) -> None:
    request = ask(checkpoint, **sampling)
    answer = decoder(checkpoint).answer(request)
    clean = decoder(checkpoint).check(request, answer)
    assert (clean.tokens, clean.first_difference, clean.logit_gap) == (answer, -1, 0.0)
    assert decoder(checkpoint).check(request, answer[:5]).first_difference == -1  # given up by the client


@pytest.mark.parametrize("place", [0, 4, 11])
def test_a_wrong_token_is_found_in_its_place_and_the_clean_answer_goes_on(checkpoint: Checkpoint, place: int) -> None:
    request = ask(checkpoint, ignore_eos=True)
    answer = decoder(checkpoint).answer(request)
    assert len(answer) == 12
    wrong = (*answer[:place], (answer[place] + 1) % 1000, *answer[place + 1 :])
    clean = decoder(checkpoint).check(request, wrong)
    assert clean.first_difference == place and clean.tokens == answer and clean.logit_gap > 0


def test_what_was_asked_before_changes_no_answer(checkpoint: Checkpoint) -> None:
    shared = decoder(checkpoint)
    texts = (TEXT, TEXT + "def close", TEXT[:100], "import os\n" * 20, TEXT)
    for text in texts:
        request = ask(checkpoint, text)
        assert shared.answer(request) == decoder(checkpoint).answer(request)


def test_an_end_token_ends_the_answer_unless_it_is_ignored(checkpoint: Checkpoint) -> None:
    request = ask(checkpoint, ignore_eos=True)
    third = decoder(checkpoint).answer(request)[2]
    ends = frozenset({third})
    assert decoder(checkpoint, ends=ends).answer(ask(checkpoint))[-1] == third
    assert len(decoder(checkpoint, ends=ends).answer(ask(checkpoint))) <= 3
    assert len(decoder(checkpoint, ends=ends).answer(request)) == 12
