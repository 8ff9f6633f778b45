"""Makes the runs of a night on machines that share no disk: folders of runs that are not clean come back with them."""

import io
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec.structs import replace

from repro.base.errors import HarnessError, RecordError
from repro.fleet.nightly.execute import execute
from repro.fleet.nightly.job import Job, JobResult, died
from repro.pool.call import Died, Pool
from repro.record.log import log_of
from repro.schedule.token import code_hash

PACKED_BYTES_MAX = 512 * 2**20  # a run's folder that is larger comes back without its event log


class Sent(msgspec.Struct, frozen=True):
    """A job and the hash of the code that must make it."""

    job: Job
    code: str


class Packed(msgspec.Struct, frozen=True):
    """A result whose `run_dir` is relative, and its run's folder as an archive."""

    result: JobResult
    folder: bytes = b""


def runs_on_cluster(pool: Pool, folder: Path, jobs: Iterator[Job]) -> Iterator[JobResult]:
    """Yield the jobs' results as they end; their run folders are unpacked into `folder`. Raises RecordError."""
    code = code_hash().hex()
    for sent, packed in pool.results(execute_remotely, (Sent(job, code) for job in jobs)):
        yield died(sent.job, packed.why) if isinstance(packed, Died) else _unpacked(packed, folder)


def execute_remotely(sent: Sent) -> Packed:
    """Make a run on a machine of the cluster and return its result, with its folder unless it is clean."""
    if code_hash().hex() != sent.code:
        raise HarnessError(
            "a machine of the cluster cannot make runs: its code is not the night's; install the same version there"
        )
    with tempfile.TemporaryDirectory(prefix="repro-nightly-") as root:
        try:
            result = execute(replace(sent.job, root=root))
        except RecordError as error:
            raise RecordError(f"on a machine of the cluster: {error}") from error
        if not result.run_dir or result.verdict == "clean":
            return Packed(replace(result, run_dir=""))
        folder = Path(result.run_dir)
        return Packed(replace(result, run_dir=str(folder.relative_to(root))), _packed(folder))


def _packed(folder: Path) -> bytes:
    """Return a run's folder as a compressed archive, without a log that is too long to send."""
    files = sorted(file for file in folder.iterdir() if file.is_file())
    whole = sum(file.stat().st_size for file in files) <= PACKED_BYTES_MAX
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w:gz", compresslevel=1) as archive:
        for file in files:
            if whole or file != log_of(folder):
                archive.add(file, arcname=file.name)
    return memory.getvalue()


def _unpacked(packed: Packed, root: Path) -> JobResult:
    """Lay a run's folder down beside the night's others and return the result that names it."""
    if not packed.result.run_dir:
        return packed.result
    path = _free(root / packed.result.run_dir)
    try:
        with tarfile.open(fileobj=io.BytesIO(packed.folder)) as archive:
            archive.extractall(path, filter="data")
    except OSError as error:
        raise RecordError(f"{path}: cannot be written ({error.strerror}); free some space, then --resume") from error
    return replace(packed.result, run_dir=str(path))


def _free(path: Path) -> Path:
    """Return a path that does not exist yet: two machines may begin runs of one name in the same second."""
    number = 2
    free = path
    while free.exists():
        free, number = path.with_name(f"{path.name}-{number}"), number + 1
    return free
