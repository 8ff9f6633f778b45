"""Placeholders for modules that are not installed: any name can be looked up; a call raises with that name.

It imports nothing but the standard library: in a server, torch itself may be who imports such a module.
"""

import importlib.abc
import importlib.machinery
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

NOTHING: Mapping[str, object] = {}
# What declares kernels while modules are imported; launches and what is computed for them are calls like all others.
DECLARING = ("triton.jit", "triton.autotune", "triton.heuristics", "triton.Config", "triton.language.constexpr")


class _Placeholder(type):
    """A name that is not there; a class, for torch asks whether things are instances of some."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return placeholder(f"{cls.__qualname__}.{name}")

    def __call__(cls, *args: Any, **keywords: Any) -> Any:
        if cls.__qualname__ not in DECLARING:
            raise NotImplementedError(f"{cls.__qualname__} has no stand-in: this path needs a GPU")
        if len(args) == 1 and callable(args[0]) and not keywords:
            return args[0]  # a decorator of kernels
        return _as_it_is


def placeholder(name: str) -> Any:
    """Return a placeholder: any name can be looked up in it, and a call raises with the missing name."""
    return _Placeholder(name, (), {"__qualname__": name})


def fill(module: ModuleType, contents: Mapping[str, object] = NOTHING) -> None:
    """Let a module have these contents, and placeholders for everything else."""

    def missing(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return placeholder(f"{module.__name__}.{name}")

    vars(module).update(contents, __getattr__=missing)


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds modules of these names and all below them, filled with placeholders and what `contents` has for them."""

    def __init__(self, names: Sequence[str], contents: Mapping[str, Mapping[str, object]] | None = None) -> None:
        self._names = tuple(names)
        self._contents = contents or {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return a spec for what is to be filled."""
        absent = any(fullname == name or fullname.startswith(f"{name}.") for name in self._names)
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True) if absent else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """Return a module without content."""
        return ModuleType(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Fill it."""
        fill(module, self._contents.get(module.__name__, NOTHING))


def _as_it_is(function: Callable[..., object]) -> Callable[..., object]:
    return function
