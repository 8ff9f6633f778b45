"""Stand-ins for packages of the GPU that a server imports on a CPU and does not use there."""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

PACKAGES = ("sgl_kernel", "torchvision", "triton")
MODULES = {"vllm._custom_ops": ("rotary_embedding",)}  # of packages that must not seem to be whole


class _Placeholder(type):
    """A name that is not there; a class, for torch asks whether things are instances of some."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return placeholder(f"{cls.__qualname__}.{name}")

    def __call__(cls, *args: Any, **keywords: Any) -> Any:
        if not cls.__qualname__.startswith("triton."):
            raise NotImplementedError(f"{cls.__qualname__} has no stand-in: this path needs a GPU")
        if len(args) == 1 and callable(args[0]) and not keywords:
            return args[0]  # a decorator of kernels
        return _as_it_is


def placeholder(name: str) -> Any:
    """Return what stands for a name: anything may be looked up in it, and a call says what is missing."""
    return _Placeholder(name, (), {"__qualname__": name})


def _as_it_is(function: Callable[..., object]) -> Callable[..., object]:
    return function


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, package: str) -> None:
        self._package = package

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        below = fullname.startswith(f"{self._package}.")
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True) if below else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return ModuleType(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        _fill(module)


def stand_in(package: str) -> None:
    """Fill the package that is being imported, and let all modules below it be found."""
    _fill(sys.modules[package])
    sys.meta_path.append(_Finder(package))


def _fill(module: ModuleType) -> None:
    def missing(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return placeholder(f"{module.__name__}.{name}")

    vars(module).update(__getattr__=missing, __version__="0")
