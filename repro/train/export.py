"""A trained model to the checkpoint's files, and back."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from repro.train.model import Glm5, ModelConfig

# stacked name -> the name of one expert's matrix
STACKED = {"experts_gate": "gate_proj", "experts_up": "up_proj", "experts_down": "down_proj"}
FP32_SUFFIX = "e_score_correction_bias"


def export_tensors(model: Glm5) -> dict[str, Tensor]:
    """Return the tensors under the hub's names, bf16 except for the routers' bias."""
    tensors: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        dtype = torch.float32 if name.endswith(FP32_SUFFIX) else torch.bfloat16
        full = name if name.startswith("lm_head.") else f"model.{name}"
        prefix, _, last = full.rpartition(".")
        if last in STACKED:
            for expert, matrix in enumerate(value):
                tensors[f"{prefix}.experts.{expert}.{STACKED[last]}.weight"] = matrix.to(dtype).cpu().contiguous()
        else:
            tensors[full] = value.to(dtype).cpu().contiguous()
    return tensors


def import_tensors(tensors: dict[str, Tensor], config: ModelConfig) -> Glm5:
    """Return an fp32 model of a checkpoint's tensors. Raises RuntimeError for a missing or foreign one."""
    state: dict[str, Tensor] = {}
    stacks: dict[str, dict[int, Tensor]] = {}
    single = {matrix: stacked for stacked, matrix in STACKED.items()}
    for name, value in tensors.items():
        parts = name.removeprefix("model.").split(".")
        if "experts" in parts:
            at = parts.index("experts")
            stacked = ".".join([*parts[:at], single[parts[at + 2]]])
            stacks.setdefault(stacked, {})[int(parts[at + 1])] = value.float()
        else:
            state[".".join(parts)] = value.float()
    for name, matrices in stacks.items():
        state[name] = torch.stack([matrices[expert] for expert in range(len(matrices))])
    model = Glm5(config)
    model.load_state_dict(state)
    return model


def write(model: Glm5, path: Path) -> None:
    """Write model.safetensors."""
    save_file(export_tensors(model), path, metadata={"format": "pt"})


def read(path: Path, config: ModelConfig) -> Glm5:
    """Return the fp32 model of a model.safetensors."""
    return import_tensors(load_file(path), config)
