"""Stand-ins for packages of the GPU that a server imports on a CPU and does not use there."""

import sys

from repro.engines.sglang.classes.placeholders import Finder, fill

PACKAGES = ("sgl_kernel", "torchvision", "triton")
MODULES = {"vllm._custom_ops": ("rotary_embedding",)}  # packages that must not seem to be whole


def stand_in(package: str) -> None:
    """Fill the package that is being imported, and let all modules below it be found."""
    fill(sys.modules[package], {"__version__": "0"})
    sys.meta_path.append(Finder((package,)))
