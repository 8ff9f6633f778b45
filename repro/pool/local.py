"""Worker processes of this machine, each making one call after another."""

import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import IO, Any

from repro.base.errors import HarnessError
from repro.pool.call import Argument, Died, Result, decoded_answer, encoded_call

CALL_TIMEOUT_S = 1800.0
DAY_S = 86_400.0  # the limit for calls that bound their own time
CALLS_OF_A_PROCESS_MAX = 50  # bounds whatever leaks from run to run
LAST_WORDS_BYTES = 4096


class LocalPool:
    """Worker processes, started when there is something to do. Leaving the context kills them, also within a call.

    A call that takes longer than `timeout_s` dies. A process ends after `calls_each` calls.
    """

    def __init__(
        self, workers: int, *, timeout_s: float = CALL_TIMEOUT_S, calls_each: int | None = CALLS_OF_A_PROCESS_MAX
    ) -> None:
        self._threads = ThreadPoolExecutor(workers)
        self._workers = [_Worker(timeout_s, calls_each) for _ in range(workers)]
        self._free = list(self._workers)
        self._under_way: dict[Future[bytes | Died], tuple[_Worker, Any]] = {}

    def __enter__(self) -> "LocalPool":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.kill()
        self._threads.shutdown(cancel_futures=True)

    def results(
        self, function: Callable[[Argument], Result], arguments: Iterator[Argument]
    ) -> Iterator[tuple[Argument, Result | Died]]:
        """Yield each argument with what its call came to; see `repro.pool.call.Pool`."""
        while True:
            while self._free and (argument := next(arguments, None)) is not None:
                worker = self._free.pop()
                future = self._threads.submit(worker.ask, encoded_call(function, argument))
                self._under_way[future] = worker, argument
            if not self._under_way:
                return
            ended, _ = wait(self._under_way, return_when=FIRST_COMPLETED)
            for future in [each for each in self._under_way if each in ended]:
                worker, argument = self._under_way.pop(future)
                self._free.append(worker)
                answer = future.result()
                yield argument, answer if isinstance(answer, Died) else decoded_answer(function, answer)

    def interrupt(self, wait_s: float) -> None:
        """Tell the calls under way to end as Ctrl-C does, and wait that long for them to write what they have."""
        for worker in self._workers:
            worker.interrupt()
        wait(self._under_way, wait_s)


class _Worker:
    """One process at a time."""

    def __init__(self, timeout_s: float, calls_each: int | None) -> None:
        self._timeout_s = timeout_s
        self._calls_each = calls_each
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None  # the process's standard error
        self._calls = 0
        self._lock = threading.Lock()
        self._killed = False

    def ask(self, line: bytes) -> bytes | Died:
        """Return the line that answers a call, or how the process died of it."""
        process, started_s = self._started(), time.monotonic()
        timer = threading.Timer(self._timeout_s, process.kill)
        timer.start()
        answer = _exchange(process, line)
        timer.cancel()
        if answer.endswith(b"\n"):
            return answer
        why = self._cause_of_death(process)
        late = time.monotonic() - started_s >= self._timeout_s
        return Died(f"no answer within {self._timeout_s:g} s" if late else why)

    def interrupt(self) -> None:
        """Send the process what Ctrl-C sends."""
        with self._lock:
            self._killed = True
            if self._process is not None:
                self._process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """End the process at once and start no other."""
        with self._lock:
            self._killed = True
            self._end()

    def _started(self) -> "subprocess.Popen[bytes]":
        with self._lock:
            if self._calls_each is not None and self._calls >= self._calls_each:
                self._end()
            if self._process is None and not self._killed:
                self._errors = tempfile.TemporaryFile()  # noqa: SIM115, closed in _end
                # A new session keeps the terminal's Ctrl-C away: the pool's owner ends the process.
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "repro.pool.worker"],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, start_new_session=True,
                )  # fmt: skip
            if self._process is None:
                raise HarnessError("the pool is closed")
            self._calls += 1
            return self._process

    def _cause_of_death(self, process: "subprocess.Popen[bytes]") -> str:
        code = process.wait()
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit {code}"
        words: list[str] = []
        with self._lock:
            if self._errors is not None:
                self._errors.seek(max(0, self._errors.seek(0, 2) - LAST_WORDS_BYTES))
                words = self._errors.read().decode(errors="replace").strip().splitlines()
            self._end()
        return f"{how}: {words[-1] if words else 'no last words'}"

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._errors is not None:
            self._errors.close()
        self._process, self._errors, self._calls = None, None, 0


def _exchange(process: "subprocess.Popen[bytes]", line: bytes) -> bytes:
    """Hand a call over and return the line that answers; a torn or empty one from a process that has died."""
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(line + b"\n")
        process.stdin.flush()
        return process.stdout.readline()
    except (OSError, ValueError):
        return b""
