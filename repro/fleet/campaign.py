"""One scenario over many seeds, with the defect and without: how often it is found, how often silent.

Each run is a process of its own, so a crash of one is counted and the others go on.
"""

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from statistics import median
from typing import get_args

import msgspec

from detectors.base import Layer
from reports.rates import rate_of
from repro.base.verdict_word import VerdictWord
from repro.record.verdict import RunVerdict

LAYERS: tuple[str, ...] = get_args(Layer)
RUN_TIMEOUT_S = 900
STOP_S = 20  # for a run to judge what it has, after a Ctrl-C
SIDES: dict[str, tuple[str, ...]] = {
    "defect": (),
    "control": ("--control",),
    "defect, no faults": ("--no-faults",),
}


class _Failure(msgspec.Struct):
    """What a run printed with --json that came to no verdict."""

    error: str


class Side(msgspec.Struct, frozen=True):
    """All runs of one side; a run that died has no verdict, only its error."""

    name: str
    verdicts: tuple[RunVerdict, ...]
    errors: tuple[str, ...]

    def count(self, word: str) -> int:
        """Return how many runs came to this verdict."""
        return sum(verdict.word == word for verdict in self.verdicts)


def run_campaign(
    scenario: str,
    seeds: Sequence[int],
    sides: Sequence[str],
    *,
    root: Path,
    workers: int,
    done: Callable[[str, int, str], None],
) -> list[Side]:
    """Run every seed on every side and return the sides; `done(side, seed, verdict)` after each run.

    A Ctrl-C ends the runs under way; what was done until then is returned.
    """
    processes = Processes()
    results: dict[tuple[str, int], RunVerdict | str] = {}
    pool = ThreadPoolExecutor(workers)
    try:
        futures = {
            pool.submit(processes.run, _command(scenario, seed, SIDES[side], root, workers)): (side, seed)
            for side in sides
            for seed in seeds
        }
        for future in as_completed(futures):
            job = futures[future]
            result = results[job] = future.result()
            done(*job, result.word if isinstance(result, RunVerdict) else result)
    except KeyboardInterrupt:
        pool.shutdown(wait=False, cancel_futures=True)
        processes.stop()
    finally:
        pool.shutdown(cancel_futures=True)
    return [_side(name, [results[name, seed] for seed in seeds if (name, seed) in results]) for name in sides]


def exit_code(sides: Sequence[Side], seeds: int) -> int:
    """Return 0 when every defect was found and every control silent, 1 when not, 4 for dead runs, 5 for fewer."""
    defect, control = sides[:2]
    if any(side.errors for side in sides):
        return VerdictWord.FAILED.exit_code
    if any(len(side.verdicts) < seeds for side in sides):
        return VerdictWord.INCONCLUSIVE.exit_code
    as_expected = defect.count(VerdictWord.ANOMALY) == seeds == control.count(VerdictWord.CLEAN)
    return (VerdictWord.CLEAN if as_expected else VerdictWord.ANOMALY).exit_code


def first_findings(side: Side) -> dict[str, tuple[int, str]]:
    """Return by layer of the truth how many runs found something there, and after how many requests, in words."""
    told: dict[str, tuple[int, str]] = {}
    for layer in LAYERS:
        requests = sorted(verdict.first[layer].requests for verdict in side.verdicts if layer in verdict.first)
        if requests:
            told[layer] = len(requests), f"{median(requests):g} ({requests[0]} to {requests[-1]})"
    return told


def corrupted_rate(side: Side) -> str:
    """Return the rate of requests corrupted at first hand with its interval, in words (simulated).

    Poisoned ones may be among them, so the two don't add up.
    """
    if not side.verdicts:
        return "no run"
    per_run = [(v.funnel.corrupted, v.funnel.requests) for v in side.verdicts]
    rate = rate_of("corrupted", per_run)
    return f"{rate.count} of {rate.of} ({rate.count / max(1, rate.of):.2%}, 95 % {rate.low:.2%} to {rate.high:.2%})"


class Processes:
    """The runs under way."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: list[subprocess.Popen[bytes]] = []
        self._stopped = False

    def run(self, command: Sequence[str]) -> RunVerdict | str:
        """Run one process to its end and return its verdict, or what became of it."""
        with self._lock:
            if self._stopped:
                return "not started"
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            self._running.append(process)
        try:
            out, told = process.communicate(timeout=RUN_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return f"no verdict within {RUN_TIMEOUT_S} s"
        finally:
            with self._lock:
                self._running.remove(process)
        return _verdict(out) or f"exit {process.returncode}: {_last_words(out, told)}"

    def stop(self) -> None:
        """Tell all of them to end, as Ctrl-C in a terminal does."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for process in running:
            process.send_signal(signal.SIGINT)
        for process in running:
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _command(scenario: str, seed: int, flags: tuple[str, ...], root: Path, workers: int) -> list[str]:
    command = [sys.executable, "-m", "repro", "run", scenario, "--seed", str(seed), "--json", "--quiet"]
    return [*command, "--runs", str(root), "--threads", "1" if workers > 1 else "2", *flags]


def _verdict(out: bytes) -> RunVerdict | None:
    try:
        return msgspec.json.decode(out, type=RunVerdict)
    except msgspec.DecodeError:
        return None


def _last_words(out: bytes, told: bytes) -> str:
    try:
        return msgspec.json.decode(out, type=_Failure).error
    except msgspec.DecodeError:
        return " ".join(told.decode(errors="replace").strip().splitlines()[-1:]) or "no output"


def _side(name: str, results: Sequence[RunVerdict | str]) -> Side:
    verdicts = tuple(result for result in results if isinstance(result, RunVerdict))
    return Side(name, verdicts, tuple(result for result in results if isinstance(result, str)))
