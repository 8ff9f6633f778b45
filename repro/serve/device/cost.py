"""What each operation costs in virtual microseconds, priced as GLM-5 on eight H100 would pay.

A tiny model's tokens stand for `scale` real ones each, so a 3,000-token session is priced as a
48,000-token one and copies overlap compute as they do in production. Its layers stand for the first
ones of GLM-5's 78; the compute of the others is priced into the tail of each step, because it is what
gives the next load-back its head start. Rates that come out of a run under these prices are simulated;
they are never measurements of a GPU.
"""

from dataclasses import dataclass

from repro.base.probe import Component


@dataclass(frozen=True)
class ModelPrice:
    """Shape that is priced: GLM-5 as its config.json on the hub (`zai-org/GLM-5`) gives it."""

    hidden: int = 6144
    heads: int = 64
    q_lora: int = 2048
    kv_lora: int = 512
    nope: int = 192
    rope: int = 64
    value: int = 256
    index_heads: int = 32
    index_dim: int = 128
    topk: int = 2048
    layers: int = 78
    experts: int = 256
    experts_per_token: int = 8
    expert_width: int = 2048
    vocabulary: int = 154_880
    latent_row_bytes: int = 1152  # 576 values in bf16
    index_row_bytes: int = 132  # 128 fp8 values and a 4-byte scale


@dataclass(frozen=True)
class CostModel:
    """Prices on one machine. Sources: NVIDIA's H100 SXM datasheet for peak rates (989 TFLOP/s dense
    bf16, 3.35 TB/s); half of the peak is what large matrix products reach in practice; 50 GB/s is a
    common PCIe 5 x16 copy rate (tests.bench.links saw 46 on an H100), and 10 us a kernel's fixed cost
    with its all-reduce."""

    name: str
    scale: float
    model: ModelPrice = ModelPrice()
    gpus: int = 8
    flops_per_us: float = 0.5 * 989e6  # per GPU
    memory_bytes_per_us: float = 0.7 * 3.35e6  # per GPU
    link_bytes_per_us: float = 50e3  # host to device, and the other way
    copy_fixed_us: float = 8.0
    # One 400 Gb/s port (ConnectX-7) at nine tenths of its rate; posting and completing a write takes some 5 us.
    network_bytes_per_us: float = 45e3
    write_fixed_us: float = 5.0
    # Between the GPUs of one machine. NVLink of an H100 is 450 GB/s a direction (datasheet: 900 GB/s both ways);
    # between two H100, NCCL's broadcast reached 347 to 384 GB/s and took at least 45 us when PyTorch launched one
    # after another (tests.bench.links). 20 us stand for launches in a captured graph, and are assumed.
    nvlink_bytes_per_us: float = 360e3
    collective_fixed_us: float = 20.0
    # One data-centre SSD on PCIe 4 x4 (7.9 GB/s), as datasheets give them: about 6.8 GB/s read in sequence, 4 GB/s
    # written, and some 100 us to a read's first byte.
    storage_read_bytes_per_us: float = 6.8e3
    storage_write_bytes_per_us: float = 4.0e3
    storage_fixed_us: float = 100.0
    kernel_fixed_us: float = 10.0
    # The host. A prefill runs eagerly: each operation here stands for some 25 kernels at 6 us of Python
    # and launch, as eager transformers in PyTorch show; a decode step is one graph replay.
    plan_us: float = 300.0  # a scheduler round
    prepare_us: float = 1000.0  # a batch's tensors and attention metadata, between plan and first kernel
    launch_prefill_us: float = 150.0
    launch_decode_us: float = 2.0

    def _sharded(self, flops: float, weight_bytes: float) -> float:
        compute = flops / (self.flops_per_us * self.gpus)
        memory = weight_bytes / (self.memory_bytes_per_us * self.gpus)
        return self.kernel_fixed_us + max(compute, memory)

    def store_us(self, tokens: int, prefill: bool) -> float:
        """Projections of a layer and the store of its new rows."""
        m = self.model
        weights = m.hidden * m.q_lora + m.q_lora * m.heads * (m.nope + m.rope)
        weights += m.hidden * (m.kv_lora + m.rope + m.index_dim) + m.q_lora * m.index_heads * m.index_dim
        return self._sharded(2.0 * weights * self._tokens(tokens, prefill), weights)

    def index_us(self, token_keys: float, prefill: bool) -> float:
        """Scoring: `token_keys` is the sum over query tokens of the keys that each one scores.

        The indexer is replicated over the tensor-parallel ranks, as SGLang runs it.
        """
        m = self.model
        pairs = token_keys * self.scale * (self.scale if prefill else 1.0)
        flops = 2.0 * m.index_heads * m.index_dim * pairs
        return self.kernel_fixed_us + flops / self.flops_per_us

    def attend_us(self, tokens: int, prefill: bool) -> float:
        """Sparse attention over top-k keys, with the absorbed projections and the output."""
        m = self.model
        per_token = 2.0 * m.heads * (2 * m.kv_lora + m.rope) * m.topk
        weights = m.heads * (m.nope * m.kv_lora + m.kv_lora * m.value + m.value * m.hidden)
        return self._sharded((per_token + 2.0 * weights) * self._tokens(tokens, prefill), weights)

    def feed_forward_us(self, tokens: int, prefill: bool) -> float:
        """Routed experts and the shared one; all weights of the experts hit are read."""
        m = self.model
        count = self._tokens(tokens, prefill)
        weights = 3.0 * m.hidden * m.expert_width
        hit = min(m.experts, count * m.experts_per_token) + 1
        return self._sharded(2.0 * weights * (m.experts_per_token + 1) * count, weights * hit)

    def tail_us(self, rows: int, tokens: int, token_keys: float, prefill: bool, layers: int) -> float:
        """What follows the last of `layers` layers: the layers that the served model lacks, and the
        logits and sampling of `rows` tokens."""
        layer_us = self.store_us(tokens, prefill) + self.index_us(token_keys, prefill)
        layer_us += self.attend_us(tokens, prefill) + self.feed_forward_us(tokens, prefill)
        return max(0, self.model.layers - layers) * layer_us + self._head_us(rows)

    def propose_us(self, rows: int) -> float:
        """The end of a pass of the draft layer: its experts, and the shared head's logits, of `rows` tokens."""
        return self.feed_forward_us(rows, False) + self._head_us(rows)

    def _head_us(self, rows: int) -> float:
        weights = float(self.model.hidden * self.model.vocabulary)
        return self._sharded(2.0 * weights * rows, 2.0 * weights)

    def embed_us(self, tokens: int) -> float:
        """Block-table upload or embedding: fixed cost."""
        return self.kernel_fixed_us

    def copy_us(self, tokens: int, row_bytes: int) -> float:
        """Copy of `tokens` rows of one layer and component over the host link."""
        return self.copy_fixed_us + tokens * self.scale * row_bytes / self.link_bytes_per_us

    def write_us(self, tokens: int, row_bytes: int) -> float:
        """One-sided write of `tokens` rows of one layer and component to another machine."""
        return self.write_fixed_us + tokens * self.scale * row_bytes / self.network_bytes_per_us

    def storage_read_us(self, rows: int, component: Component) -> float:
        """Read of a file with `rows` rows of a component, those of all its layers together."""
        return self.storage_fixed_us + rows * self.scale * self.row_bytes(component) / self.storage_read_bytes_per_us

    def storage_write_us(self, rows: int, component: Component) -> float:
        """Write of such a file."""
        return self.storage_fixed_us + rows * self.scale * self.row_bytes(component) / self.storage_write_bytes_per_us

    def broadcast_us(self, tokens: int, row_bytes: int) -> float:
        """Broadcast of `tokens` cached rows from one rank to the others: a ring passes on what it gets."""
        return self.collective_fixed_us + tokens * self.scale * row_bytes / self.nvlink_bytes_per_us

    def gather_us(self, tokens: int, row_bytes: int, prefill: bool) -> float:
        """All-gather of the new rows of a step's `tokens`; each rank gets those of all others."""
        return self.collective_fixed_us + self._tokens(tokens, prefill) * row_bytes / self.nvlink_bytes_per_us

    def row_bytes(self, component: Component) -> int:
        """Return the size of one real token's row of a component in one layer."""
        return self.model.latent_row_bytes if component == "latent" else self.model.index_row_bytes

    def _tokens(self, tokens: int, prefill: bool) -> float:
        """A prompt token stands for `scale` real ones; a decode step has one token a row either way."""
        return tokens * (self.scale if prefill else 1.0)


PRESETS = {
    "h100x8-glm5": CostModel("h100x8-glm5", scale=16.0),
    "h100-glm5": CostModel("h100-glm5", scale=16.0, gpus=1),
    # A token stands for a page of 64, for studies over GLM-5's own shape.
    "h100x8-glm5-pages": CostModel("h100x8-glm5-pages", scale=64.0),
    "h100x8-glm5-pages-50g": CostModel("h100x8-glm5-pages-50g", scale=64.0, nvlink_bytes_per_us=50e3),
    "h100x8-glm5-pages-eager": CostModel("h100x8-glm5-pages-eager", scale=64.0, collective_fixed_us=45.0),
    # The first on one 100 Gb/s port, for sensitivity tables.
    "h100x8-glm5-100g": CostModel("h100x8-glm5-100g", scale=16.0, network_bytes_per_us=11.25e3),
}
