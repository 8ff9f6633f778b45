"""A pool whose calls are made at once, in this process."""

from collections.abc import Callable, Iterator
from typing import Self

import torch

from repro.pool.call import Argument, Result


class HerePool:
    """Stands for `LocalPool` where a test patches functions."""

    def __init__(self, workers: int, *, calls_each: int | None = None) -> None:
        torch.set_num_threads(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """There is nothing to end."""

    def results(
        self, function: Callable[[Argument], Result], arguments: Iterator[Argument]
    ) -> Iterator[tuple[Argument, Result]]:
        for argument in arguments:
            yield argument, function(argument)

    def interrupt(self, wait_s: float) -> None:
        """There is nothing under way."""
