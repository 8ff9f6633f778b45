"""The runs of a night on a Ray cluster (extra: cluster). Every machine needs this package in the same version.

A run is a task that Ray hands to a free processor; when a machine dies, Ray makes its runs again on another one, and
a result comes back once. Folders of runs that are not clean come back with it: machines share no disk.
"""

import importlib
import io
import os
import socket
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from repro.base.errors import HarnessError, RecordError, UsageError
from repro.fleet.nightly.execute import execute
from repro.fleet.nightly.job import Job, JobResult
from repro.fleet.workers import RUN_TIMEOUT_S
from repro.schedule.token import code_hash

TRIES_MAX = 4  # of a run whose machine died under it; a run that kills each of them is counted as died
PACKED_BYTES_MAX = 512 * 2**20  # of a run's folder on its way back; above it the event log stays behind
POLL_S = 1.0
CONNECT_TIMEOUT_S = 10.0
NEXT_STEP = "start one with `ray start --head`, and give its address, or auto on one of its machines"
LOG = "events.jsonl"


class Packed(msgspec.Struct, frozen=True):
    """What a task sends back: the result, and the run's folder; or why nothing can be recorded there."""

    result: JobResult | None
    folder: bytes = b""
    disk: str = ""


class RayPool:
    """A pool over a cluster. Use it as a context: leaving it gives up what is under way."""

    def __init__(self, address: str, root: Path, workers: int) -> None:
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
        self._root = root
        self._open_max = max(workers, int(ray.cluster_resources().get("CPU", 1)))
        self._make = ray.remote(num_cpus=1, max_retries=TRIES_MAX - 1)(make)

    def __enter__(self) -> "RayPool":
        return self

    def __exit__(self, *_: object) -> None:
        self._ray.shutdown()

    def results(self, jobs: Iterator[Job]) -> Iterator[JobResult]:
        """Yield results as they come; see `repro.fleet.workers.Pool`."""
        running: dict[object, Job] = {}
        while True:
            while len(running) < self._open_max and (job := next(jobs, None)) is not None:
                running[self._make.remote(msgspec.json.encode(job), code_hash().hex())] = job
            if not running:
                return
            # A timeout, so that Ctrl-C is seen.
            ended, _ = self._ray.wait(list(running), num_returns=1, timeout=POLL_S)
            for reference in ended:
                yield self._result(reference, running.pop(reference))

    def _result(self, reference: object, job: Job) -> JobResult:
        try:
            packed = msgspec.msgpack.decode(self._ray.get(reference), type=Packed)
        except self._ray.exceptions.RayTaskError as error:
            raise HarnessError(f"a machine of the cluster cannot make runs: {error}") from error
        except self._ray.exceptions.RayError as error:
            words = f"{TRIES_MAX} machines or processes died under it: {type(error).__name__}"
            return JobResult(job.key, job.case, job.role, job.seed, "died", (words,))
        if packed.result is None:
            raise RecordError(f"on a machine of the cluster: {packed.disk}")
        return _unpacked(packed.result, packed.folder, self._root)


def _check_reachable(address: str) -> None:
    """Raise UsageError for a HOST:PORT where nobody listens: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise UsageError(f"--ray {address}: no cluster there ({error}); {NEXT_STEP}") from error


def make(encoded: bytes, code: str) -> bytes:
    """Make one run on a machine of the cluster; `code` is what the night's own machine runs."""
    import torch

    if code_hash().hex() != code:
        raise UsageError("its code is not the night's: install the same version on every machine")
    torch.set_num_threads(1)
    hangs = threading.Timer(RUN_TIMEOUT_S, os._exit, (1,))  # Ray tries again, and counts it as died at last
    hangs.daemon = True
    hangs.start()
    try:
        return _made(encoded)
    finally:
        hangs.cancel()


def _made(encoded: bytes) -> bytes:
    with tempfile.TemporaryDirectory(prefix="repro-nightly-") as root:
        try:
            result = execute(msgspec.json.decode(encoded, type=Job), Path(root))
        except RecordError as error:
            return msgspec.msgpack.encode(Packed(None, disk=str(error)))
        folder = Path(result.run_dir)
        keep = result.run_dir and result.verdict != "clean"
        relative = msgspec.structs.replace(result, run_dir=str(folder.relative_to(root)) if keep else "")
        return msgspec.msgpack.encode(Packed(relative, _packed(folder) if keep else b""))


def _packed(folder: Path) -> bytes:
    """Return a run's folder as a compressed archive, without a log that is too long to send."""
    files = sorted(file for file in folder.iterdir() if file.is_file())
    whole = sum(file.stat().st_size for file in files) <= PACKED_BYTES_MAX
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w:gz", compresslevel=1) as archive:
        for file in files:
            if whole or file.name != LOG:
                archive.add(file, arcname=file.name)
    return memory.getvalue()


def _unpacked(result: JobResult, folder: bytes, root: Path) -> JobResult:
    """Lay a run's folder down beside the night's others and return the result that names it."""
    if not result.run_dir:
        return result
    path = _free(root / result.run_dir)
    try:
        with tarfile.open(fileobj=io.BytesIO(folder)) as archive:
            archive.extractall(path, filter="data")
    except OSError as error:
        raise RecordError(f"{path}: cannot be written ({error.strerror}); free some space, then --resume") from error
    return msgspec.structs.replace(result, run_dir=str(path))


def _free(path: Path) -> Path:
    """Return a path that nobody has yet: two machines may have begun runs of one name in the same second."""
    number = 2
    free = path
    while free.exists():
        free, number = path.with_name(f"{path.name}-{number}"), number + 1
    return free
