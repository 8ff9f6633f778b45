"""Runs the parts of an experiment, each run in a process of its own: a crash costs one, Ctrl-C what is under way."""

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import msgspec

from repro.fleet.campaign import Processes
from repro.fleet.experiment.alone import bad_requests
from repro.fleet.experiment.folder import ExperimentFolder
from repro.fleet.experiment.plan import Experiment, Part, limited
from repro.record.verdict import RunVerdict
from repro.record.view import open_run
from repro.scenario.schema import parse
from repro.scenario.sessions import sessions_of
from repro.trace.store import write_sessions

OnDone = Callable[[Part, int, str, bool], None]  # part, seed, verdict, whether it had been run before
NOTHING_BAD = "no request of {} was corrupted with this seed: there is nothing to ask again"


class PartRuns(msgspec.Struct):
    """The runs of one part, by seed. What died or could not be run has words instead of a verdict."""

    part: Part
    verdicts: dict[int, RunVerdict] = {}
    errors: dict[int, str] = {}
    empty: dict[int, str] = {}  # seeds that had nothing to ask

    @property
    def missing(self) -> int:
        """Return how many runs a Ctrl-C has left out."""
        return self.part.seeds - len(self.verdicts) - len(self.errors) - len(self.empty)


def run_parts(experiment: Experiment, folder: ExperimentFolder, *, workers: int, done: OnDone) -> list[PartRuns]:
    """Run what the folder does not have yet and return all; a Ctrl-C ends early, with what there is."""
    parts = limited(experiment.parts, folder.plan.seeds_max)
    results = {part.key: PartRuns(part) for part in parts}
    processes = Processes()
    pool = ThreadPoolExecutor(workers)
    try:
        for wave in _waves(parts):
            jobs = _jobs(wave, folder, results, done)
            futures = {
                pool.submit(processes.run, _command(part, scenario, seed, folder, workers)): (part, seed)
                for part, seed, scenario in jobs
            }
            for future in as_completed(futures):
                part, seed = futures[future]
                result = future.result()
                _take(results[part.key], seed, result, folder)
                done(part, seed, result if isinstance(result, str) else result.word, False)
    except KeyboardInterrupt:
        pool.shutdown(wait=False, cancel_futures=True)
        processes.stop()
    finally:
        pool.shutdown(cancel_futures=True)
    return list(results.values())


def _waves(parts: Sequence[Part]) -> tuple[list[Part], list[Part]]:
    """Return the parts that others ask again, and all others; what has most runs, and judges nothing, is last."""
    asked_again = {part.step.bad_requests_of for part in parts}
    others = [part for part in parts if part.step.name not in asked_again]
    others.sort(key=lambda part: (part.step.expect == "rate", part.sensitivity))
    return [part for part in parts if part.step.name in asked_again], others


def _jobs(
    parts: Sequence[Part], folder: ExperimentFolder, results: dict[str, PartRuns], done: OnDone
) -> list[tuple[Part, int, Path]]:
    """Return what is to be run, and take what has been run before."""
    jobs = []
    for part in parts:
        runs = results[part.key]
        for seed in range(folder.plan.first_seed, folder.plan.first_seed + part.seeds):
            kept = folder.kept(part, seed)
            if kept is not None:
                runs.verdicts[seed] = kept
                done(part, seed, kept.word, True)
                continue
            source = results.get(part.step.bad_requests_of)
            scenario = _whole(part, folder) if source is None else _alone(part, seed, source, folder)
            if scenario is not None:
                jobs.append((part, seed, scenario))
            elif source is not None and seed in source.verdicts:
                runs.empty[seed] = NOTHING_BAD.format(part.step.bad_requests_of)
                done(part, seed, runs.empty[seed], False)
    return jobs


def _whole(part: Part, folder: ExperimentFolder) -> Path:
    return folder.write(f"scenarios/{part.key}.toml", part.scenario_text().encode())


def _alone(part: Part, seed: int, source: PartRuns, folder: ExperimentFolder) -> Path | None:
    """Write the bad requests of the other step's run and the scenario that asks them; None without any."""
    verdict = source.verdicts.get(seed)
    if verdict is None:
        return None
    sessions = sessions_of(parse(source.part.scenario_text(), source.part.key, "scenario").load, seed)
    bad = bad_requests(open_run(Path(verdict.run_dir)).requests, sessions)
    if not bad:
        return None
    trace = folder.path.resolve() / f"traces/{part.key}-{seed}.jsonl"
    write_sessions(trace, bad)
    return folder.write(f"scenarios/{part.key}-{seed}.toml", part.scenario_text(trace, len(bad)).encode())


def _command(part: Part, scenario: Path, seed: int, folder: ExperimentFolder, workers: int) -> list[str]:
    command = [sys.executable, "-m", "repro", "run", str(scenario), "--seed", str(seed), "--json", "--quiet"]
    threads = "1" if workers > 1 else "2"
    return [*command, "--no-report", "--runs", str(folder.runs), "--threads", threads, *part.flags]


def _take(runs: PartRuns, seed: int, result: RunVerdict | str, folder: ExperimentFolder) -> None:
    if isinstance(result, str):
        runs.errors[seed] = result
    elif result.cut is None:  # one that a limit or Ctrl-C has cut short is run again by a resume
        runs.verdicts[seed] = result
        folder.keep(runs.part, seed, result)
        if seed != folder.plan.first_seed:  # its seed brings the log again: tens of megabytes a run
            (Path(result.run_dir) / "events.jsonl").unlink(missing_ok=True)
