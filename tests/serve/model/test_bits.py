"""A token's latents, index keys and logits have the same bits however it was computed."""

import pytest
import torch
from torch import Tensor

from tests.serve.model.builders import BUNDLED, TINY, Cache, make_model, make_reference, threads

SIZES = {"tiny": (TINY, 90), "bundled": (BUNDLED, 420)}


@pytest.fixture(scope="module", params=SIZES)
def alone(request, tmp_path_factory):
    """A model, a prompt longer than its selection, and what it gives alone, in one piece, on one thread."""
    sizes, count = SIZES[request.param]
    model = make_model(make_reference(sizes), tmp_path_factory.mktemp("model"))
    tokens = torch.arange(count) * 37 % sizes["vocab_size"]
    with threads(1):
        cache = Cache(model, num_rows=1, max_tokens=count)
        logits = cache.prefill(0, tokens, count)
    return model, tokens, cache_rows(cache, 0, count), logits


def cache_rows(cache: Cache, row: int, count: int) -> tuple[Tensor, Tensor]:
    """Return the latents and index keys of a row's tokens, by layer and position."""
    slots = cache.slots(row, count)
    return cache.latents[:, slots], cache.index_keys[:, slots]


def assert_same(cache: Cache, row: int, logits: Tensor, alone) -> None:
    """Assert that a row's latents, index keys and logits equal those computed alone."""
    _, tokens, (latents, index_keys), expected = alone
    got_latents, got_index_keys = cache_rows(cache, row, len(tokens))
    assert torch.equal(got_latents, latents)
    assert torch.equal(got_index_keys, index_keys)
    assert torch.equal(logits, expected[-len(logits) :])


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("chunk", [16, 33, 65, 128])
def test_any_chunking_gives_the_same_bits(alone, chunk, num_threads):
    model, tokens, _, _ = alone
    cache = Cache(model, num_rows=1, max_tokens=len(tokens) + 200, seed=1)
    with threads(num_threads):
        logits = cache.prefill(0, tokens, chunk)
    assert_same(cache, 0, logits, alone)


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("mates", [0, 1, 6, 20])
def test_decode_in_any_batch_gives_the_bits_of_prefill(alone, mates, num_threads):
    model, tokens, _, _ = alone
    start = len(tokens) - 12
    cache = Cache(model, num_rows=mates + 1, max_tokens=len(tokens) + 64, seed=2)
    with threads(num_threads):
        for row in range(mates + 1):  # mates hold other tokens, and end elsewhere
            prompt = tokens[:start] if row == mates else (tokens[: start - 3 * row] + row) % 96
            cache.prefill(row, prompt, 128)
        decoded = []
        for step in range(12):
            parts = [(row, start - 3 * row + step, tokens[step : step + 1]) for row in range(mates)]
            hidden = cache.step([*parts, (mates, start + step, tokens[start + step : start + step + 1])])
            decoded.append(hidden[-1:])
        logits = model.logits(torch.cat(decoded))
    assert_same(cache, mates, logits, alone)


@pytest.mark.parametrize("num_threads", [1, 2])
def test_prefill_beside_decode_rows_and_another_prefill_gives_the_same_bits(alone, num_threads):
    model, tokens, _, _ = alone
    cache = Cache(model, num_rows=5, max_tokens=len(tokens) + 64, seed=3)
    with threads(num_threads):
        for row in range(3):
            cache.prefill(row, tokens[: 40 + row], 128)
        hidden = []
        for at in range(0, len(tokens), 50):
            decodes = [(row, 40 + row + at // 50, tokens[:1]) for row in range(3)]
            chunk = tokens[at : at + 50]
            output = cache.step([*decodes, (3, at, chunk.flip(0)), (4, at, chunk)])
            hidden.append(output[-len(chunk) :])
        logits = model.logits(torch.cat(hidden))
    assert_same(cache, 4, logits, alone)


def test_logits_of_a_row_do_not_depend_on_the_rows_beside_it(alone):
    model, _, _, _ = alone
    hidden = torch.linspace(-2, 2, 40 * model.config.hidden_size).view(40, -1).sin()
    expected = model.logits(hidden)
    for num_threads in (1, 2):
        with threads(num_threads):
            for count in (1, 2, 3, 9, 11, 16, 17, 31):
                assert torch.equal(model.logits(hidden[:count]), expected[:count])


@pytest.mark.parametrize("pool", ["latents", "index_keys"])
def test_nan_in_one_used_slot_changes_the_answer(alone, pool):
    model, tokens, _, logits = alone
    cache = Cache(model, num_rows=1, max_tokens=len(tokens) + 64)
    cache.prefill(0, tokens, 128)
    kept = cache.selected[0][-1][-1].tolist()  # what the last token attends to in layer 0
    # A NaN index key ranks first, so it shows in a position that was scored and not kept.
    used = kept[0] if pool == "latents" else next(at for at in range(len(tokens)) if at not in kept)
    getattr(cache, pool)[0, cache.slots(0, len(tokens))[used]] = torch.nan
    hidden = cache.step([(0, len(tokens) - 1, tokens[-1:])])
    assert not torch.equal(model.logits(hidden), logits[-1:])
    if pool == "latents":
        assert hidden.isnan().all()


def test_nan_in_unused_slots_changes_nothing(alone):
    model, tokens, _, logits = alone
    cache = Cache(model, num_rows=2, max_tokens=len(tokens) + 64)
    cache.prefill(0, tokens[:-1], 128)
    written = cache.slots(0, len(tokens) - 1)
    unused = torch.ones(cache.latents.shape[1], dtype=torch.bool)
    unused[written] = False
    assert cache.latents[:, unused].isnan().all() and cache.index_keys[:, unused].isnan().all()
    hidden = cache.step([(0, len(tokens) - 1, tokens[-1:])])
    assert torch.equal(model.logits(hidden), logits[-1:])
    short = cache.step([(1, 0, tokens[:5])])  # fewer tokens than the selection keeps
    assert not short.isnan().any()
