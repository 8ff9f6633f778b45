"""What SGLang's cache classes import and a CPU has not, as modules without content.

Kernels are put in their place by `kernels` afterwards; the rest (layers of models, collectives, metrics) is
imported by name and not called on the paths that are played here: a call says which name it was.
"""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

from repro.engines.sglang.classes.placeholders import Finder

PACKAGES = ("triton", "sgl_kernel", "torchvision")  # GPU packages; their stand-ins go again after the import
ABSENT = (
    *PACKAGES,
    "sglang.jit_kernel",
    "sglang.srt.configs",
    "sglang.srt.distributed",
    "sglang.srt.layers.dp_attention",
    "sglang.srt.layers.quantization",
    "sglang.srt.layers.radix_attention",
    "sglang.srt.observability.metrics_collector",
)
# SGLang's modules of these packages are imported without the packages' __init__, which would import all models.
BARE = ("sglang", "sglang.srt.layers", "sglang.srt.layers.attention", "sglang.srt.layers.attention.nsa")
CONTENTS: dict[str, dict[str, object]] = {
    "sglang.srt.layers.quantization.fp8_kernel": {
        "fp8_dtype": torch.float8_e4m3fn,
        "is_fp8_fnuz": lambda: False,
    },
}


@contextmanager
def in_place() -> Iterator[None]:
    """Let SGLang be imported without a GPU inside; what it has imported whole stays, the GPU's packages go."""
    spec = importlib.util.find_spec("sglang")
    assert spec is not None and spec.submodule_search_locations is not None, "sglang is not installed"
    [root] = spec.submodule_search_locations
    finder, before = Finder(ABSENT, CONTENTS), set(sys.modules)
    for name in BARE:
        package: Any = ModuleType(name)
        package.__path__ = ["/".join((root, *name.split(".")[1:]))]
        sys.modules[name] = package
    sys.meta_path.insert(0, finder)
    gone: tuple[str, ...] = ("sglang", *PACKAGES)  # half of an import would break the next attempt
    try:
        yield
        gone = PACKAGES
    finally:
        sys.meta_path.remove(finder)
        for name in sorted(set(sys.modules) - before):
            if name.partition(".")[0] in gone:
                del sys.modules[name]
