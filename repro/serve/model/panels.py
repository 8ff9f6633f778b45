"""How a product's weight lies in memory: panels of as many outputs as one tile of the kernels computes."""

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.float32]

# fp32 numbers in one register of this processor; the bits of a product do not depend on it.
LANES = 16 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 8
PANEL = 2 * LANES


def in_panels(weight: torch.Tensor) -> Floats:
    """Return a weight (..., outputs, inputs) as (..., panels, inputs, PANEL), zeros behind the last output."""
    *stack, outputs, inputs = weight.shape
    panels = -(-outputs // PANEL)
    padded = np.zeros((*stack, panels * PANEL, inputs), np.float32)
    padded[..., :outputs, :] = weight.numpy()
    split = padded.reshape(*stack, panels, PANEL, inputs)
    return np.ascontiguousarray(np.swapaxes(split, -1, -2))
