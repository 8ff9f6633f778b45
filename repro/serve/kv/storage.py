"""The files of the storage tier: whole pages of the host tier on disk, found by the prefix that they end.

    folder/KEY.latent    KEY is a hash of the page's tokens and of the KEY before it, so all with the
    folder/KEY.index     same prefix finds the same files: another session, or another run

    a file   [ magic | digest of name and payload | payload ]
    payload  [ values, fp32; none in stamps | stamps, uint64 | taint, int32 ]   each of all layers

Nothing that a file holds is believed before its digest is right. One that is missing, cut short, damaged or under
another's name is a miss, as if it had never been written.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
import weakref
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from repro.base.errors import UsageError
from repro.base.lazy import torch
from repro.base.probe import Component
from repro.serve.kv.pool import COMPONENTS, KVPool, Rows
from repro.serve.kv.radix.node import TokenRun

Key = str  # 32 hexadecimal digits

MAGIC = b"repro-page-1"
KEY_BYTES = 16
DIGEST_BYTES = 16
_NAME = re.compile(rf"([0-9a-f]{{{2 * KEY_BYTES}}})\.(latent|index)")


def page_keys(root: Key, tokens: TokenRun, page_tokens: int) -> list[Key]:
    """Return one key for each whole page of `tokens`: equal for equal prefixes under one `root`, and for no others."""
    keys: list[Key] = []
    whole = np.ascontiguousarray(tokens[: len(tokens) - len(tokens) % page_tokens], "<i8")
    for page in whole.reshape(-1, page_tokens):
        before = keys[-1] if keys else root
        keys.append(hashlib.blake2b(before.encode() + page.tobytes(), digest_size=KEY_BYTES).hexdigest())
    return keys


def root_key(identity: str) -> Key:
    """Return the key before the first page: pages of another model or format have other keys."""
    return hashlib.blake2b(identity.encode(), digest_size=KEY_BYTES).hexdigest()


class PageFiles:
    """The page files of one folder, at most `pages_max` of them, the least recently used going first.

    Without a `folder` they are in a temporary one, which is there from the first write until `close`. A folder that
    is named stays, and pages that it has already can be hit. Raises UsageError when it can't be used.
    """

    def __init__(self, folder: Path | None, pool: KVPool, pages_max: int) -> None:
        self._pool = pool
        self._pages_max = pages_max
        self._folder = folder
        self._remove: Callable[[], object] | None = None  # the temporary folder; runs by itself if `close` never does
        self._closed = False
        self.written: set[Key] = set()  # keys of this run; only membership is asked, never the order
        self._pages: OrderedDict[Key, None] = OrderedDict()  # complete ones, least recently used first
        if folder is not None:
            self._pages.update(dict.fromkeys(_found(folder)))

    def __contains__(self, key: Key) -> bool:
        return key in self._pages

    def __len__(self) -> int:
        return len(self._pages)

    def leading(self, keys: list[Key]) -> int:
        """Return how many of these keys, from the first on, have both files, and make them the most recently used.

        The first is the last to go: without it the others are of no use.
        """
        count = next((place for place, key in enumerate(keys) if key not in self._pages), len(keys))
        for key in reversed(keys[:count]):
            self._pages.move_to_end(key)
        return count

    def write(self, key: Key, component: Component, rows: Rows, *, torn: bool = False) -> None:
        """Write one file of a page; it can be found once `admit` is called. `torn`: the second half of it is lost.

        `rows` are of all layers, (layers, page_tokens, ...). Raises OSError when it can't be written; then there is
        no such file.
        """
        values = b"" if rows.values is None else rows.values.numpy().tobytes()
        payload = values + rows.stamps.tobytes() + rows.taint.tobytes()
        content = MAGIC + _digest(key, component, payload) + payload
        path = self._path(key, component)
        partial = path.with_suffix(path.suffix + ".partial")
        try:
            partial.write_bytes(content[: len(content) // 2] if torn else content)
            os.replace(partial, path)
        except OSError:
            with suppress(OSError):
                partial.unlink()
            raise

    def admit(self, key: Key) -> None:
        """Let a page be found: all its files are written. Pages over the limit are deleted, the oldest first."""
        self.written.add(key)
        self._pages[key] = None
        self._pages.move_to_end(key)
        while len(self._pages) > self._pages_max:
            self.discard(next(iter(self._pages)))

    def discard(self, key: Key) -> None:
        """Delete all files of a page."""
        self._pages.pop(key, None)
        self.written.discard(key)
        for component in COMPONENTS:
            with suppress(OSError):
                self._path(key, component).unlink()

    def read(self, key: Key, component: Component) -> Rows | None:
        """Return one component of a page, all layers as `write` took them; None for a miss."""
        pool = self._pool
        values_type = pool.values[component]
        width = 0 if values_type is None else values_type.shape[-1]
        shape = (pool.layers, pool.page_tokens)
        rows = pool.layers * pool.page_tokens
        try:
            content = self._path(key, component).read_bytes()
        except OSError:
            return None
        start = len(MAGIC) + DIGEST_BYTES
        payload = content[start:]
        if len(payload) != rows * (4 * width + 8 + 4) or content[:start] != MAGIC + _digest(key, component, payload):
            return None
        values, stamps, taint = np.split(np.frombuffer(payload, np.uint8), [rows * 4 * width, rows * (4 * width + 8)])
        return Rows(
            torch.from_numpy(values.copy().view(np.float32).reshape(*shape, width)) if width else None,
            stamps.copy().view(np.uint64).reshape(shape),
            taint.copy().view(np.int32).reshape(shape),
        )

    def clear(self) -> None:
        """Delete every page."""
        for key in list(self._pages):
            self.discard(key)

    def close(self) -> None:
        """Write nothing from now on; a temporary folder goes with all that is in it."""
        self._closed = True
        if self._remove is not None:
            self._remove()

    def _path(self, key: Key, component: Component) -> Path:
        if self._closed:
            raise FileNotFoundError("the storage tier is closed")
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="repro-storage-"))
            self._remove = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        return self._folder / f"{key}.{component}"


def _digest(key: Key, component: Component, payload: bytes) -> bytes:
    return hashlib.blake2b(payload, key=f"{key}.{component}".encode(), digest_size=DIGEST_BYTES).digest()


def _found(folder: Path) -> list[Key]:
    """Return the keys of the complete pages in a folder, sorted; make it if it is not there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = sorted(os.listdir(folder))
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as error:
        raise UsageError(
            f'storage_folder = "{folder}": can\'t be used ({error.strerror}); name a folder that can be read and '
            "written, or leave it out for a temporary one"
        ) from error
    matches = [match for name in names if (match := _NAME.fullmatch(name))]
    parts: dict[Key, int] = {}
    for match in matches:
        parts[match[1]] = parts.get(match[1], 0) + 1
    return [key for key, count in parts.items() if count == len(COMPONENTS)]
