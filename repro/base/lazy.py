"""torch, loaded when it is first used: it takes most of a second, and a run in stamps computes nothing with it.

Modules of the stack write `from repro.base.lazy import torch`, and `from __future__ import annotations` so that a type
in a signature is no use. A module that computes as soon as it is imported says `import torch` itself.
"""

import importlib.util
import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch as torch
else:

    def _lazily(name: str) -> ModuleType:
        """Return a module that loads itself when something of it is asked for."""
        if name in sys.modules:
            return sys.modules[name]
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        spec.loader = importlib.util.LazyLoader(spec.loader)
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    torch = _lazily("torch")
