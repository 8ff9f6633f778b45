"""A llama of random weights for a server on a CPU: `python -m tests.engines.sglang.llama FOLDER`.

It speaks with the bundled model's tokenizer, and says nothing that makes sense.
"""

import shutil
import sys
from pathlib import Path

from repro.serve.engine import BUNDLED_CHECKPOINT

VOCABULARY = 4096
LAYERS = 4
CHAT = "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}<|assistant|>"
CONTEXT_TOKENS = 2048
ON_A_CPU = (
    "--device", "cpu", "--dtype", "float32", "--attention-backend", "torch_native", "--sampling-backend", "pytorch",
    "--grammar-backend", "none", "--disable-overlap-schedule", "--disable-cuda-graph", "--skip-server-warmup",
    "--enable-hierarchical-cache", "--hicache-io-backend", "direct", "--hicache-mem-layout", "layer_first",
    "--hicache-write-policy", "write_through", "--hicache-ratio", "4", "--page-size", "1", "--random-seed", "1",
)  # fmt: skip


def write_llama(folder: Path) -> None:
    """Write the model: LAYERS layers, 128 wide, the same bits each time."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=128, intermediate_size=256, num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=2,
        head_dim=32, vocab_size=VOCABULARY, max_position_embeddings=CONTEXT_TOKENS, initializer_range=0.12,
    )  # fmt: skip
    LlamaForCausalLM(config).float().save_pretrained(folder)
    tokenizer = folder / "tokenizer.json"
    shutil.copy(BUNDLED_CHECKPOINT / "tokenizer.json", tokenizer)
    speaking = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer))
    speaking.chat_template = CHAT
    speaking.save_pretrained(folder)


if __name__ == "__main__":
    if sys.argv[1:] == ["--on-a-cpu"]:
        print(*ON_A_CPU)
    else:
        write_llama(Path(sys.argv[1]))
