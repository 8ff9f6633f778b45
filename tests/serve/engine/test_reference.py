"""The engine's log-probabilities after a load-back against transformers', with the bundled checkpoint."""

import torch
from transformers import GlmMoeDsaForCausalLM

from repro.serve.engine import LoadedModel
from tests.serve.engine.builders import Answer, Stack, make_config, make_request, source_tokens
from tests.serve.model.builders import CHECKPOINT, Cache, lowest_position_ties

PAGE, PROMPT, ANSWER = 64, 600, 16
LOG_PROBABILITY_TOLERANCE = 1e-3


def answers_after_a_load_back(bundled: LoadedModel) -> tuple[Answer, Answer]:
    """Return the answers to one prompt: computed whole, and with its prefix loaded back."""
    config = make_config(
        numerics="tensors", page_tokens=PAGE, device_pages=32, context_tokens=1024, chunk_tokens=200, rows=4
    )
    answers = []

    async def main(stack: Stack) -> None:
        request = make_request("whole", source_tokens(PROMPT), ANSWER)
        answers.append(await stack.ask(request))
        await stack.engine.cache.drain()
        stack.engine.cache.evict_device(32)
        filler = make_request("filler", source_tokens(1000)[::-1], 1)
        mate = make_request("mate", source_tokens(300)[::-1], 8)
        await stack.ask(filler)
        again = make_request("again", source_tokens(PROMPT), ANSWER)
        answers.append((await stack.ask_all(mate, again))[1])

    Stack(config, bundled).run(main).assert_clean()
    whole, again = answers
    assert (whole.last.cached_host_tokens, again.last.cached_host_tokens) == (0, PROMPT // PAGE * PAGE)
    return whole, again


def test_a_load_back_changes_no_bit_and_transformers_agrees(bundled: LoadedModel) -> None:
    whole, again = answers_after_a_load_back(bundled)
    assert again.tokens == whole.tokens and again.logprobs == whole.logprobs

    assert bundled.weights is not None
    tokens = torch.tensor([*source_tokens(PROMPT), *again.tokens[:-1]])
    cache = Cache(bundled.weights, num_rows=1, max_tokens=len(tokens), page_size=PAGE)
    clean = cache.prefill(0, tokens, 256)[PROMPT - 1 :].log_softmax(-1)
    assert clean.argmax(-1).tolist() == list(again.tokens)
    assert clean.gather(1, torch.tensor(again.tokens)[:, None])[:, 0].tolist() == list(again.logprobs)

    reference = GlmMoeDsaForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    with torch.no_grad(), lowest_position_ties([torch.cat(steps) for steps in cache.selected if steps]) as cuts:
        theirs = reference(tokens[None]).logits[0, PROMPT - 1 :].log_softmax(-1)
    ours = torch.tensor(again.logprobs)
    difference = (ours - theirs.gather(1, torch.tensor(again.tokens)[:, None])[:, 0]).abs().max()
    print(f"largest difference {difference:.1e}; cuts {cuts.all}, exactly tied {cuts.tied / cuts.all:.2%}")
    assert cuts.all == bundled.shape.num_hidden_layers * (len(tokens) - bundled.shape.index_topk)
    assert difference <= LOG_PROBABILITY_TOLERANCE
