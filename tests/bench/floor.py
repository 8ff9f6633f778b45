"""What the machine allows: how fast it reads memory, how much it computes, and what a token needs of both.

The peak is that of the kernels' own product, its rows and weights in the cache. No decode step is faster than its
bytes are read once, and no prefill than its operations at the peak.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from repro.serve.model.glm5 import Glm5
from repro.serve.model.kernels.head import product
from repro.serve.model.kernels.threads import over_rows
from repro.serve.model.panels import in_panels

READ_BYTES = 1 << 28  # far more than any cache holds
REPEATS = 7  # the best of them counts: other work only slows
FLOAT_BYTES = 4


@dataclass(frozen=True)
class Machine:
    """Bytes that it reads, and operations (a fused multiply-add is two) that it computes, a second."""

    bytes_per_s: float
    flop_per_s: float


def measure() -> Machine:
    """Return what this machine does on as many threads as torch has."""
    memory = torch.ones(READ_BYTES // FLOAT_BYTES)
    weight, rows = in_panels(torch.ones(2048, 256)), np.ones((240, 256), np.float32)
    out = np.empty((len(rows), weight.shape[0] * weight.shape[2]), np.float32)
    read_s = _best(memory.sum)
    computed_s = _best(lambda: over_rows(product, len(rows), weight, rows, out))
    return Machine(READ_BYTES / read_s, 2 * out.size * rows.shape[1] / computed_s)


def _best(work: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS):
        start_s = time.perf_counter()
        work()
        times.append(time.perf_counter() - start_s)
    return min(times)


def decode_bytes(model: Glm5, rows: int, context: int) -> int:
    """Return what a step of `rows` tokens with `context` tokens each reads: weights once, and the cache's rows."""
    config = model.config
    cached = context * config.index_head_dim + config.index_topk * config.latent_width
    return FLOAT_BYTES * (_weights(model, rows) + rows * config.num_hidden_layers * cached)


def prefill_flop(model: Glm5, context: int) -> float:
    """Return the operations of one token of a prompt of `context` tokens, on average, without the logits."""
    config = model.config
    scored = config.index_n_heads * config.index_head_dim * context / 2
    mixed = config.num_attention_heads * config.index_topk * (config.latent_width + config.kv_lora_rank)
    products = _weights(model, 1) - model.weights.head.size
    return 2 * (products + config.num_hidden_layers * (scored + mixed))


def _weights(model: Glm5, rows: int) -> int:
    """Return how many weights the products of a step of `rows` tokens use, each expert at most once."""
    config, count = model.config, model.weights.head.size
    for layer in model.weights.layers[: config.num_hidden_layers]:
        attention, feed_forward = layer.attention, layer.feed_forward
        count += attention.low.size + attention.queries.size + attention.output.size
        count += feed_forward.gate_up.size + feed_forward.down.size + feed_forward.router.size
        if experts := len(feed_forward.correction_bias):
            used = min(experts, rows * config.num_experts_per_tok)
            count += (feed_forward.expert_gate_up.size + feed_forward.expert_down.size) * used // experts
    return count


def lines(model: Glm5, context: int, decode: dict[int, float], prefill: float) -> Iterator[str]:
    """Yield what the machine allows, and which share of it rates in tokens a second are; `decode` is by rows."""
    machine = measure()
    yield f"the machine reads {machine.bytes_per_s / 1e9:.1f} GB/s and computes {machine.flop_per_s / 1e9:.0f} GFLOP/s"
    for rows, rate in decode.items():
        size = decode_bytes(model, rows, context)
        most = rows * machine.bytes_per_s / size
        yield (
            f"a decode step of {rows} reads {size / 1e6:.0f} MB: at most {most:,.0f} tokens/s, "
            f"{rate / most:.0%} of it reached; it takes {rows / rate * 1e3:.1f} ms"
        )
    flop = prefill_flop(model, context)
    most = machine.flop_per_s / flop
    yield (
        f"a token of a prefill takes {flop / 1e6:.1f} MFLOP: at most {most:,.0f} tokens/s, "
        f"{prefill / most:.0%} of it reached"
    )
