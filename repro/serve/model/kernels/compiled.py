"""How kernels are compiled: for one set of types, to run without the interpreter's lock, kept in the user's cache."""

import os
import shutil
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar, cast

import numba

from repro.serve.model import panels

Function = TypeVar("Function", bound=Callable[..., Any])
FOLDERS_KEPT = 4  # of other versions of the kernels


def inlined(function: Function) -> Function:
    """Return a function that kernels call."""
    return cast(Function, numba.njit(error_model="numpy")(function))


def kernel(*arguments: Any) -> Callable[[Function], Function]:
    """Return the decorator of a kernel that takes exactly these types."""

    def compiled(function: Function) -> Function:
        signature = numba.types.void(*arguments)
        return cast(Function, numba.njit(signature, nogil=True, cache=IS_KEPT, error_model="numpy")(function))

    return compiled


def _cache_folder() -> Path:
    """Return the folder of these sources' kernels: numba looks only at the file of a kernel, not at what it calls."""
    digest = blake2b(f"{panels.PANEL} {numba.__version__}".encode(), digest_size=8)
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return caches / "repro" / "kernels" / digest.hexdigest()


def _make(folder: Path) -> bool:
    """Make the folder, take the oldest others away, and return whether it can be written to."""
    if folder.is_dir():
        return os.access(folder, os.W_OK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        others = sorted((other for other in folder.parent.iterdir() if other != folder), key=os.path.getmtime)
    except OSError:
        return False  # each process compiles for itself
    for other in others[:-FOLDERS_KEPT]:
        shutil.rmtree(other, ignore_errors=True)
    return True


FOLDER = _cache_folder()
IS_KEPT = _make(FOLDER)
if IS_KEPT:
    numba.config.CACHE_DIR = str(FOLDER)
