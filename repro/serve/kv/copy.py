"""Whole pages from one pool to another, as one operation."""

from dataclasses import dataclass

from repro.base.probe import Access
from repro.serve.device.base import Commit, Recorder
from repro.serve.kv.pool import KVPool, Pages


@dataclass(frozen=True)
class PageCopy:
    """An operation's body: reads the source pages when the copy starts, writes the target pages when it ends."""

    from_pool: KVPool
    to_pool: KVPool
    source: Pages
    target: Pages
    touched: tuple[Access, Access]  # the read, the write

    def __call__(self, recorder: Recorder) -> Commit:
        component, layer = self.touched[0].component, self.touched[0].layer
        rows = self.from_pool.read(component, layer, self.source)
        for access in self.touched:
            recorder.access(access)
        return lambda: self.to_pool.write(component, layer, self.target, rows)
