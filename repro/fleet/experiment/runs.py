"""Makes the runs of an experiment's parts; steps that ask the bad requests of another step again run after it."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from repro.fleet.experiment.bad_requests import bad_requests
from repro.fleet.experiment.folder import ExperimentFolder
from repro.fleet.experiment.plan import Experiment, Part, limited
from repro.fleet.runs import PlannedRun, make_runs
from repro.record.log import log_of
from repro.record.verdict import RunVerdict
from repro.record.view import open_run
from repro.scenario.schema import parse
from repro.scenario.sessions import sessions_of
from repro.trace.store import write_sessions

OnDone = Callable[[Part, int, str, bool], None]  # part, seed, verdict, whether it had been run before
NOTHING_BAD = "no request of {} was corrupted with this seed: there is nothing to ask again"


class PartRun(PlannedRun, frozen=True, kw_only=True):
    """A run of one part, by the part's key."""

    part: str


class PartRuns(msgspec.Struct):
    """The runs of one part, by seed. A run that died, or was not needed, has words instead of a verdict."""

    part: Part
    verdicts: dict[int, RunVerdict] = {}
    errors: dict[int, str] = {}
    empty: dict[int, str] = {}  # seeds that had nothing to ask

    @property
    def missing(self) -> int:
        """Return how many runs a Ctrl-C has left out."""
        return self.part.seeds - len(self.verdicts) - len(self.errors) - len(self.empty)


def run_parts(experiment: Experiment, folder: ExperimentFolder, *, workers: int, done: OnDone) -> list[PartRuns]:
    """Make the runs that the folder does not have yet and return all; after a Ctrl-C some are missing."""
    parts = limited(experiment.parts, folder.plan.seeds_max)
    results = {part.key: PartRuns(part) for part in parts}

    def take(run: PartRun, result: RunVerdict | str) -> None:
        runs = results[run.part]
        _take(runs, run.seed, result, folder)
        done(runs.part, run.seed, result if isinstance(result, str) else result.word, False)

    for wave in _waves(parts):
        if not make_runs(_missing(wave, folder, results, done), workers, take):
            break
    return list(results.values())


def _waves(parts: Sequence[Part]) -> tuple[list[Part], list[Part]]:
    """Return the parts that other parts ask bad requests of, and then all others; those that only measure are last."""
    asked_again = {part.step.bad_requests_of for part in parts}
    others = [part for part in parts if part.step.name not in asked_again]
    others.sort(key=lambda part: (part.step.expect == "rate", part.sensitivity))
    return [part for part in parts if part.step.name in asked_again], others


def _missing(
    parts: Sequence[Part], folder: ExperimentFolder, results: dict[str, PartRuns], done: OnDone
) -> Iterator[PartRun]:
    """Yield the runs to make; verdicts of an earlier start are taken over."""
    for part in parts:
        runs = results[part.key]
        for seed in range(folder.plan.first_seed, folder.plan.first_seed + part.seeds):
            verdict = folder.verdict(part, seed)
            if verdict is not None:
                runs.verdicts[seed] = verdict
                done(part, seed, verdict.word, True)
                continue
            source = results.get(part.step.bad_requests_of)
            scenario = _whole(part, folder) if source is None else _alone(part, seed, source, folder)
            if scenario is not None:
                yield PartRun(
                    scenario.stem, scenario.read_text(encoding="utf-8"), seed, control=part.step.control,
                    no_faults=not part.step.faults, root=str(folder.runs), part=part.key,
                )  # fmt: skip
            elif source is not None and seed in source.verdicts:
                runs.empty[seed] = NOTHING_BAD.format(part.step.bad_requests_of)
                done(part, seed, runs.empty[seed], False)


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


def _take(runs: PartRuns, seed: int, result: RunVerdict | str, folder: ExperimentFolder) -> None:
    if isinstance(result, str):
        runs.errors[seed] = result
    elif result.cut is None:  # one that a limit or Ctrl-C has cut short is run again by a resume
        runs.verdicts[seed] = result
        folder.add(runs.part, seed, result)
        if seed != folder.plan.first_seed:  # the seed can make the log, megabytes, again
            log_of(Path(result.run_dir)).unlink(missing_ok=True)
