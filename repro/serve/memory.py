"""The device memory that the operations of all steps share."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from repro.serve.kv.pool import Home, KVPool
from repro.serve.sched.rows import DeviceRows

if TYPE_CHECKING:  # compiles kernels, which numerics = "stamps" does without
    from repro.serve.model.glm5 import Glm5


@dataclass(frozen=True)
class Memory:
    """Pools, request rows and weights. With speculation the pool's last layer is the draft layer."""

    pool: KVPool
    homes: tuple[Home, ...]  # one for each layer: its rows are read and written there
    rows: DeviceRows
    model: "Glm5 | None"  # None under numerics = "stamps"
    vocabulary: int
