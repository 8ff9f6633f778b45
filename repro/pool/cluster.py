"""The calls of a pool on a Ray cluster (extra: cluster). Every machine needs this package in the same version.

A call is a task that Ray hands to a free processor. When a machine dies, Ray makes its calls again on another one,
and a result comes back once.
"""

import importlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

from repro.base.errors import HarnessError, UsageError
from repro.pool.call import Argument, Died, Result, decoded_answer, encoded_call, made
from repro.pool.local import CALL_TIMEOUT_S

TRIES_MAX = 4  # a call that kills this many machines or processes has died
POLL_S = 1.0
CONNECT_TIMEOUT_S = 10.0
NEXT_STEP = "start one with `ray start --head`, and give its address, or auto on one of its machines"


class RayPool:
    """A pool over a cluster. Leaving the context gives up what is under way."""

    def __init__(self, address: str, workers: int) -> None:
        """Connect to the cluster. Raises UsageError without the extra, or for an address where there is none."""
        try:
            ray: Any = importlib.import_module("ray")
        except ImportError as error:
            raise UsageError("--ray needs the extra cluster: pip install 'glm5-repro[cluster]'") from error
        _check_reachable(address)
        try:
            ray.init(address=address, log_to_driver=False, ignore_reinit_error=True)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UsageError(f"--ray {address}: no cluster there ({error}); {NEXT_STEP}") from error
        self._ray = ray
        self._open_max = max(workers, int(ray.cluster_resources().get("CPU", 1)))
        self._remote = ray.remote(num_cpus=1, max_retries=TRIES_MAX - 1)(make_remotely)
        self._under_way: dict[object, Any] = {}

    def __enter__(self) -> "RayPool":
        return self

    def __exit__(self, *_: object) -> None:
        self._ray.shutdown()

    def results(
        self, function: Callable[[Argument], Result], arguments: Iterator[Argument]
    ) -> Iterator[tuple[Argument, Result | Died]]:
        """Yield each argument with what its call came to; see `repro.pool.call.Pool`."""
        while True:
            while len(self._under_way) < self._open_max and (argument := next(arguments, None)) is not None:
                self._under_way[self._remote.remote(encoded_call(function, argument))] = argument
            if not self._under_way:
                return
            # The timeout lets Python see a Ctrl-C.
            ended, _ = self._ray.wait(list(self._under_way), num_returns=1, timeout=POLL_S)
            for reference in ended:
                argument = self._under_way.pop(reference)
                answer = self._answer(reference)
                yield argument, answer if isinstance(answer, Died) else decoded_answer(function, answer)

    def _answer(self, reference: object) -> bytes | Died:
        try:
            answer: bytes = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            raise HarnessError(f"a machine of the cluster cannot make runs: {error}") from error
        except self._ray.exceptions.RayError as error:
            return Died(f"{TRIES_MAX} machines or processes died under it: {type(error).__name__}")
        return answer


def _check_reachable(address: str) -> None:
    """Raise UsageError for a HOST:PORT where nobody listens: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise UsageError(f"--ray {address}: no cluster there ({error}); {NEXT_STEP}") from error


def make_remotely(call: bytes) -> bytes:
    """Make a call on a machine of the cluster and return the line that answers it."""
    import torch

    torch.set_num_threads(1)
    hangs = threading.Timer(CALL_TIMEOUT_S, os._exit, (1,))  # Ray then tries again, and in the end gives the call up
    hangs.daemon = True
    hangs.start()
    try:
        return made(call)
    finally:
        hangs.cancel()
