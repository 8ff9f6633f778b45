"""Our paged, absorbed, sparse forward against transformers' GlmMoeDsaForCausalLM."""

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import GlmMoeDsaForCausalLM

from repro.serve.model.glm5 import Glm5, load_model
from tests.serve.model.builders import (
    CHECKPOINT,
    TINY,
    Cache,
    lowest_position_ties,
    make_model,
    make_reference,
)

LOGIT_TOLERANCE = 1e-3
needs_checkpoint = pytest.mark.skipif(
    not (CHECKPOINT / "model.safetensors").exists(), reason="the bundled checkpoint is not trained yet"
)


@pytest.mark.parametrize("chunk", [1, 13, 150])
@pytest.mark.parametrize("changed", [{}, {"n_group": 2, "topk_group": 1}, {"norm_topk_prob": False}], ids=str)
def test_random_weights_give_transformers_logits_past_topk_in_any_chunking(chunk, changed, tmp_path):
    reference = make_reference(TINY | changed)
    model = make_model(reference, tmp_path)
    tokens = torch.arange(150) * 31 % TINY["vocab_size"]
    cache = Cache(model, num_rows=2, max_tokens=150)
    logits = cache.prefill(1, tokens, chunk)
    with lowest_position_ties([torch.cat(steps) for steps in cache.selected if steps]) as cuts:
        expected = reference(tokens[None]).logits[0]
    assert cuts.all == 3 * (150 - TINY["index_topk"]), "selection must really have selected"
    assert (logits - expected).abs().max() <= LOGIT_TOLERANCE


@pytest.fixture(scope="module")
def bundled() -> tuple[Glm5, GlmMoeDsaForCausalLM]:
    reference = GlmMoeDsaForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32)
    return load_model(CHECKPOINT), reference.eval().requires_grad_(False)


def prompts(count: int, tokens: int) -> list[Tensor]:
    """Return prompts of real source text, each from another place."""
    text = "".join(path.read_text() for path in sorted(CHECKPOINT.parent.glob("*.py")))
    ids = torch.tensor(Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json")).encode(text * 4).ids)
    return [ids[start : start + tokens] for start in torch.arange(count).mul(211).tolist()]


@needs_checkpoint
def test_bundled_checkpoint_gives_transformers_logits_in_chunked_prefill(bundled):
    model, reference = bundled
    [prompt] = prompts(1, 1200)
    cache = Cache(model, num_rows=1, max_tokens=1200, page_size=64)
    logits = cache.prefill(0, prompt, 500)
    with lowest_position_ties([torch.cat(steps) for steps in cache.selected if steps]) as cuts:
        expected = reference(prompt[None]).logits[0]
    print(f"cuts {cuts.all}, exactly tied {cuts.tied / cuts.all:.2%}, nearly tied {cuts.near / cuts.all:.2%}")
    assert (logits - expected).abs().max() <= LOGIT_TOLERANCE


@needs_checkpoint
def test_bundled_checkpoint_decodes_transformers_256_greedy_tokens_of_8_prompts(bundled):
    model, reference = bundled
    batch = torch.stack(prompts(8, 300))
    cache = Cache(model, num_rows=8, max_tokens=300 + 256, page_size=64)
    last = torch.cat([cache.step([(row, 0, prompt)])[-1:] for row, prompt in enumerate(batch)])
    ours = [model.logits(last).argmax(-1)]
    for position in range(300, 300 + 255):
        hidden = cache.step([(row, position, ours[-1][row : row + 1]) for row in range(8)])
        ours.append(model.logits(hidden).argmax(-1))
    found = torch.stack(ours, 1)
    with lowest_position_ties() as cuts:
        theirs = likeliest(reference, batch, found)
    print(f"cuts {cuts.all}, exactly tied {cuts.tied / cuts.all:.2%}")
    assert torch.equal(found, theirs)


def likeliest(reference: GlmMoeDsaForCausalLM, batch: Tensor, found: Tensor) -> Tensor:
    """Return transformers' likeliest token behind each prompt and each prefix of what was found.

    Where all of them are equal to `found`, that is what transformers decodes greedily: each token of it is the
    likeliest behind those before. One pass over the whole costs a fifth of a pass for each token.
    """
    logits = reference(torch.cat((batch, found[:, :-1]), 1), logits_to_keep=found.shape[1]).logits
    return logits.argmax(-1)
