"""Decides what stays on the disk: evidence of runs that found something, within a bound; other runs are removed."""

import shutil
from pathlib import Path

from reports.night.night import Pruned
from reports.run.html import write_report
from repro.fleet.nightly.job import JobResult
from repro.record.log import log_of
from repro.record.view import open_run

REPORT = "report.html"


class Evidence:
    """Owns the run folders of a night. The figures in the night's JSON do not need the folders."""

    def __init__(self, root: Path, bytes_max: int) -> None:
        self.pruned = Pruned()
        self._root = root
        self._bytes_max = bytes_max
        self._bytes = 0
        self.examples: dict[str, str] = {}  # cause -> folder of a run that stays whole

    def tidy(self, results: dict[str, JobResult]) -> None:
        """Count the runs that an earlier start has results of, and remove run folders without a result."""
        for result in results.values():
            self.keep(result)
        counted = {Path(result.run_dir).parts[-2:] for result in results.values() if result.run_dir}
        for folder in sorted(self._root.glob("*/*")):
            if folder.parts[-2:] not in counted:  # the night's folder may have been moved since
                self._remove(folder)

    def keep(self, result: JobResult) -> None:
        """Keep a run's evidence or remove it: a clean or vacuous run, and a log whose causes another run shows.

        A run that shows a new cause gets its report now; the page of the night links to it.
        """
        folder = Path(result.run_dir)
        if not result.run_dir or not folder.is_dir():
            return
        if result.verdict in ("clean", "vacuous"):
            self._remove(folder)
            return
        fits = self._bytes + _size(folder) <= self._bytes_max
        if result.role == "silent" and fits and result.signatures.keys() - self.examples.keys():
            self.examples = dict.fromkeys(result.signatures, result.run_dir) | self.examples
            if not (folder / REPORT).exists():
                write_report(open_run(folder))
        else:
            self._remove_log(folder)
        if self._bytes + _size(folder) > self._bytes_max:
            self._remove(folder)
        else:
            self._bytes += _size(folder)

    def _remove(self, folder: Path) -> None:
        size = _size(folder)
        shutil.rmtree(folder, ignore_errors=True)
        self._count(size, runs=1)

    def _remove_log(self, folder: Path) -> None:
        log = log_of(folder)
        if log.exists():
            size = log.stat().st_size
            log.unlink()
            self._count(size, logs=1)

    def _count(self, size: int, *, runs: int = 0, logs: int = 0) -> None:
        self.pruned = Pruned(self.pruned.runs + runs, self.pruned.logs + logs, self.pruned.bytes + size)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
