"""What SGLang's cache classes import and a CPU has not, as modules without content.

Kernels are put in their place by `kernels` afterwards; the rest (layers of models, collectives, metrics) is
imported by name and not called on the paths that are played here: a call says which name it was.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NoReturn

import torch

PACKAGES = ("triton", "sgl_kernel", "torchvision")  # of the GPU; taken out again, so that nobody else meets them
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
# Packages of SGLang whose modules are taken without what their __init__ brings: all models and their layers.
BARE = ("sglang", "sglang.srt.layers", "sglang.srt.layers.attention", "sglang.srt.layers.attention.nsa")


def _as_it_is(function: Callable[..., object]) -> Callable[..., object]:
    return function


CONTENTS: dict[str, dict[str, object]] = {
    "triton": {"jit": _as_it_is},
    "sglang.srt.layers.quantization.fp8_kernel": {
        "fp8_dtype": torch.float8_e4m3fn,
        "is_fp8_fnuz": lambda: False,
    },
}


class Missing:
    """A name of a module that is not there."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *args: object, **keywords: object) -> NoReturn:
        raise NotImplementedError(f"{self._name} has no stand-in: this path of SGLang can't be played on a CPU")

    def __getattr__(self, name: str) -> "Missing":
        if name.startswith("__"):
            raise AttributeError(name)
        return Missing(f"{self._name}.{name}")


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the modules of `ABSENT` and all below them."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        absent = any(fullname == name or fullname.startswith(f"{name}.") for name in ABSENT)
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True) if absent else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return ModuleType(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        def missing(name: str) -> Missing:
            if name.startswith("__"):
                raise AttributeError(name)
            return Missing(f"{module.__name__}.{name}")

        vars(module).update(CONTENTS.get(module.__name__, {}))
        vars(module)["__getattr__"] = missing


@contextmanager
def in_place() -> Iterator[None]:
    """Let SGLang be imported without a GPU inside; what it has imported whole stays, the GPU's packages go."""
    spec = importlib.util.find_spec("sglang")
    assert spec is not None and spec.submodule_search_locations is not None, "sglang is not installed"
    [root] = spec.submodule_search_locations
    finder, before = _Finder(), set(sys.modules)
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
