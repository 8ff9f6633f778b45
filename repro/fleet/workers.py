"""Where the runs of a night are made: worker processes of this machine, each making one run after another."""

import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import IO, Protocol

import msgspec

from repro.base.errors import RecordError
from repro.fleet.nightly.job import Job, JobResult
from repro.fleet.worker import Answer

RUN_TIMEOUT_S = 1800.0
RUNS_OF_A_PROCESS_MAX = 50  # so that what leaks stays bounded, whatever it is
LAST_WORDS_BYTES = 4096


class Pool(Protocol):
    """Makes runs, several at once."""

    def results(self, jobs: Iterator[Job]) -> Iterator[JobResult]:
        """Yield results as they come. A job is drawn when a worker is free, after the last result was taken.

        A run that dies, with its process or without, is a result too. Raises RecordError for a full disk.
        """


class LocalPool:
    """Worker processes. Use it as a context: leaving it kills them, in the middle of a run too."""

    def __init__(self, root: Path, workers: int) -> None:
        self._root = root
        self._threads = ThreadPoolExecutor(workers)
        self._free = [_Worker(root) for _ in range(workers)]
        self._all = list(self._free)

    def __enter__(self) -> "LocalPool":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._all:
            worker.kill()
        self._threads.shutdown(cancel_futures=True)

    def results(self, jobs: Iterator[Job]) -> Iterator[JobResult]:
        """Yield results as they come; see `Pool`."""
        running: dict[Future[JobResult], _Worker] = {}
        while True:
            while self._free and (job := next(jobs, None)) is not None:
                worker = self._free.pop()
                running[self._threads.submit(worker.run, job)] = worker
            if not running:
                return
            ended, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                self._free.append(running.pop(future))
            for future in ended:
                yield future.result()


class _Worker:
    """One process at a time, started when there is something to run."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._process: subprocess.Popen[bytes] | None = None
        self._words: IO[bytes] | None = None  # what it says on standard error
        self._runs = 0
        self._lock = threading.Lock()
        self._killed = False

    def run(self, job: Job) -> JobResult:
        """Make one run and return what it came to. Raises RecordError for a full disk."""
        process = self._started()
        timer = threading.Timer(RUN_TIMEOUT_S, process.kill)
        timer.start()
        line = _asked(process, job)
        timer.cancel()
        if not line.endswith(b"\n"):
            return self._died(process, job)
        answer = msgspec.json.decode(line, type=Answer)
        if answer.result is None:
            raise RecordError(answer.disk)
        return answer.result

    def kill(self) -> None:
        """End the process at once, and start none any more."""
        with self._lock:
            self._killed = True
            self._end()

    def _started(self) -> "subprocess.Popen[bytes]":
        with self._lock:
            if self._runs >= RUNS_OF_A_PROCESS_MAX:
                self._end()
            if self._process is None and not self._killed:
                command = [sys.executable, "-m", "repro.fleet.worker", str(self._root)]
                self._words = tempfile.TemporaryFile()  # noqa: SIM115, closed in _end
                # A session of its own: Ctrl-C is for the night, which ends its workers itself.
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._words, start_new_session=True
                )
            if self._process is None:
                raise RecordError("the night is over")
            self._runs += 1
            return self._process

    def _died(self, process: "subprocess.Popen[bytes]", job: Job) -> JobResult:
        code = process.wait()
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit {code}"
        with self._lock:
            told = self._last_words()
            self._end()
        return JobResult(job.key, job.case, job.role, job.seed, "died", (f"{how}: {told or 'no last words'}",))

    def _last_words(self) -> str:
        if self._words is None:
            return ""
        self._words.seek(max(0, self._words.seek(0, 2) - LAST_WORDS_BYTES))
        return " ".join(self._words.read().decode(errors="replace").strip().splitlines()[-1:])

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._words is not None:
            self._words.close()
        self._process, self._words, self._runs = None, None, 0


def _asked(process: "subprocess.Popen[bytes]", job: Job) -> bytes:
    """Hand a job over and return the line that answers; a torn or empty one from a process that has died."""
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(msgspec.json.encode(job) + b"\n")
        process.stdin.flush()
        return process.stdout.readline()
    except (OSError, ValueError):
        return b""
