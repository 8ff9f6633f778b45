"""The pinned SGLang: found, its version checked, its cache modules imported."""

import importlib
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from repro.base.errors import UsageError
from repro.engines.sglang.classes import standins

VERSION = "0.5.11"
EXTRA = "sglang-component"


@dataclass(frozen=True)
class Sglang:
    """The modules of SGLang that run, unchanged except for what `Kernels.bind` and `SglangCache` replace in them."""

    cache_controller: Any
    hybrid_controller: Any
    memory_pool: Any
    memory_pool_host: Any
    allocator: Any
    radix_cache: Any
    hiradix_cache: Any
    prefix_cache: Any
    init_params: Any
    index_accessor: Any


MODULES = {
    "cache_controller": "sglang.srt.managers.cache_controller",
    "hybrid_controller": "sglang.srt.mem_cache.hybrid_cache.hybrid_cache_controller",
    "memory_pool": "sglang.srt.mem_cache.memory_pool",
    "memory_pool_host": "sglang.srt.mem_cache.memory_pool_host",
    "allocator": "sglang.srt.mem_cache.allocator",
    "radix_cache": "sglang.srt.mem_cache.radix_cache",
    "hiradix_cache": "sglang.srt.mem_cache.hiradix_cache",
    "prefix_cache": "sglang.srt.mem_cache.base_prefix_cache",
    "init_params": "sglang.srt.mem_cache.cache_init_params",
    "index_accessor": "sglang.srt.layers.attention.nsa.index_buf_accessor",
}


def require(extra: str = EXTRA) -> None:
    """Raise UsageError unless the pinned SGLang is installed; our extra `extra` installs what it imports."""
    try:
        found = version("sglang")
    except PackageNotFoundError as error:
        raise UsageError(f"this takes sglang {VERSION}, which is not installed: {_install(extra)}") from error
    if found != VERSION:
        raise UsageError(
            f"this takes sglang {VERSION}, and {found} is installed; what is known of its guards holds for no other: "
            f"{_install(extra)}"
        )


def _install(extra: str) -> str:
    return f"pip install --no-deps sglang=={VERSION} && pip install 'glm5-repro[{extra}]'"


@cache
def load() -> Sglang:
    """Return the modules, imported once a process. Raises UsageError for what is not installed."""
    require()
    try:
        with standins.in_place():
            return Sglang(**{name: importlib.import_module(path) for name, path in MODULES.items()})
    except ModuleNotFoundError as error:
        raise UsageError(f"sglang {VERSION} imports {error.name}, which is not installed: {_install(EXTRA)}") from error
