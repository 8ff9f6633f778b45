"""Print prefill and decode rates of the model's leaf functions beside transformers'.

Run: python -m tests.bench.model. Both have the same weights (the bundled checkpoint's, or random ones of
its shape before it is there), threads and precision (fp32).
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.table import Table
from torch import Tensor
from transformers import AutoConfig, GlmMoeDsaForCausalLM

from repro.serve.model.glm5 import Glm5, load_model
from tests.bench.results import add_record, show
from tests.serve.model.builders import CHECKPOINT, Cache, make_model, make_reference

CHUNK_TOKENS = 512


def models() -> tuple[Glm5, GlmMoeDsaForCausalLM, str]:
    """Return our model, transformers', and whose weights they have."""
    if (CHECKPOINT / "model.safetensors").exists():
        reference = GlmMoeDsaForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32)
        return load_model(CHECKPOINT), reference.eval().requires_grad_(False), "bundled checkpoint"
    reference = make_reference(AutoConfig.from_pretrained(CHECKPOINT).to_dict())
    with tempfile.TemporaryDirectory() as folder:
        return make_model(reference, Path(folder)), reference, "random weights"


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Return the least wall time of a piece of work."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def decode_step(cache: Cache, tokens: Tensor, position: int) -> Tensor:
    """Return the logits of one decode step of all rows."""
    hidden = cache.step([(row, position, tokens[row : row + 1]) for row in range(len(tokens))])
    return cache.model.logits(hidden)


def our_rates(model: Glm5, context: int, rows: int, steps: int) -> tuple[float, float]:
    """Return prefill and decode tokens per second of the leaf functions."""
    prompt = torch.arange(context) * 7 % model.config.vocab_size
    cache = Cache(model, rows, context + steps + 2, page_size=64)
    cache.prefill(0, prompt[: CHUNK_TOKENS * 2], CHUNK_TOKENS)  # warm up
    prefill_s = seconds(lambda: prefill(cache, prompt), 2)
    for row in range(1, rows):  # same bytes, own pages
        cache.latents[:, cache.slots(row, context)] = cache.latents[:, cache.slots(0, context)]
        cache.index_keys[:, cache.slots(row, context)] = cache.index_keys[:, cache.slots(0, context)]
    tokens = torch.arange(rows)
    decode_step(cache, tokens, context)
    decode_s = seconds(lambda: decode_step(cache, tokens, context), steps)
    return context / prefill_s, rows / decode_s


def prefill(cache: Cache, prompt: Tensor) -> None:
    """Prefill a prompt and take the logits of its last token only, as an engine does."""
    for at in range(0, len(prompt), CHUNK_TOKENS):
        hidden = cache.step([(0, at, prompt[at : at + CHUNK_TOKENS])])
    cache.model.logits(hidden[-1:])


def reference_rates(reference: GlmMoeDsaForCausalLM, context: int, rows: int, steps: int) -> tuple[float, float]:
    """Return prefill and decode tokens per second of transformers' forward with its cache.

    One row is prefilled and its cache repeated: a prefill of 16 rows at once takes 36 GB for index scores.
    """
    prompt = (torch.arange(context) * 7 % reference.config.vocab_size)[None]
    start = time.perf_counter()
    cache = reference(prompt, use_cache=True, logits_to_keep=1).past_key_values
    prefill_s = time.perf_counter() - start
    cache.batch_repeat_interleave(rows)
    tokens = torch.arange(rows)[:, None]
    reference(tokens, past_key_values=cache)
    decode_s = seconds(lambda: reference(tokens, past_key_values=cache), steps)
    return context / prefill_s, rows / decode_s


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--context", type=int, default=3000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-reference", action="store_true", help="measure our side only")
    add_record(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model, reference, weights = models()
    table = Table(title=f"{weights}, context {arguments.context}, {arguments.threads} threads")
    for column in ("forward", "rows", "prefill tokens/s", "decode tokens/s"):
        table.add_column(column, justify="left" if column == "forward" else "right")
    for rows in (1, 16):
        rates = our_rates(model, arguments.context, rows, 20)
        table.add_row("repro", str(rows), *(f"{rate:,.0f}" for rate in rates))
    for rows, steps in () if arguments.no_reference else ((1, 16), (16, 4)):
        rates = reference_rates(reference, arguments.context, rows, steps)
        table.add_row("transformers", str(rows), *(f"{rate:,.0f}" for rate in rates))
    show(arguments, table)


if __name__ == "__main__":
    main()
