"""Memory of SGLang's host pools where there is no GPU to pin it for."""

from typing import Any

import torch


def unpin(memory_pool_host: Any) -> None:
    """Let the pools of SGLang's module `memory_pool_host` take ordinary memory, and leave none to the machine."""
    memory_pool_host.HICACHE_HOST_MEMORY_RESERVE_BYTES = 0  # a server keeps such a reserve, a test does not
    memory_pool_host.ALLOC_MEMORY_FUNCS.default_factory = lambda: _unpinned


def _unpinned(
    dims: tuple[int, ...], dtype: torch.dtype, device: str, pin_memory: bool, allocator: object
) -> torch.Tensor:
    return torch.zeros(dims, dtype=dtype, device=device)
