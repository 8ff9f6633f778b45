"""A kernel's rows over torch's number of threads; a row's bits do not depend on which thread computes it."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch

ROWS_MIN = 8  # a thread's rows: for fewer, waking it takes longer than it spares


def over_rows(kernel: Callable[..., None], rows: int, *arguments: Any) -> None:
    """Run `kernel(*arguments, first, last)` over all rows, and return when all are written."""
    threads = min(torch.get_num_threads(), rows // ROWS_MIN)
    if threads < 2:
        kernel(*arguments, 0, rows)
        return
    bounds = [rows * part // threads for part in range(threads + 1)]
    pool = _pool()
    running = [pool.submit(kernel, *arguments, bounds[part], bounds[part + 1]) for part in range(1, threads)]
    kernel(*arguments, 0, bounds[1])
    for part in running:
        part.result()


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="kernel")


os.register_at_fork(after_in_child=_pool.cache_clear)  # a forked process has none of the threads
