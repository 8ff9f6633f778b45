"""Commands that run a load and judge it: a scenario, an experiment, traces, a token, many seeds."""

import time
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import typer
from rich.table import Table

from repro.base.errors import UsageError
from repro.cli.common import Output, command, finish, print_json, recipe_with_notes, run_watched, say, sayer
from repro.cli.options import (
    WORKERS,
    Api,
    CalibrationResults,
    CampaignResults,
    Detection,
    ExperimentOptions,
    GentleLoad,
    LeftOut,
    ReplayLoad,
    RunResults,
    Seed,
    Server,
    number,
    url_of,
)


@command(
    "repro run hicache_early_read --seed 7",
    "repro run my_race.toml --control --json",
    "repro run pd_scaling_pain --workers 4",
)
def run(
    scenario: Annotated[str, typer.Argument(help="A bundled scenario or experiment (see `repro list`), or a file.")],
    *,
    seed: Seed = 0,
    left_out: LeftOut,
    picker: Annotated[
        Literal["timed", "random"],
        typer.Option(help="Who goes next: timed is what a real machine does, random explores."),
    ] = "timed",
    no_report: Annotated[bool, typer.Option("--no-report", help="Leave the HTML report to `repro report`.")] = False,
    of_experiment: ExperimentOptions,
    results: RunResults,
) -> None:
    """Run a scenario on the bundled stack and judge it, or an experiment: a scenario in steps.

    Exit codes of an experiment: 0 every step came to what its file expects, 1 not so, 4 runs died, 5 runs are missing.
    """
    import repro.fleet.experiment.plan as experiments
    import repro.scenario.schema as scenarios

    experiment = experiments.find(scenario)
    if experiment is not None:
        if left_out != LeftOut() or picker != "timed" or no_report or results.threads:
            raise UsageError(
                f"{scenario} is an experiment, whose steps say what they run; it takes --seed, --seeds, --workers, "
                "--resume, --runs, --json and --quiet"
            )
        from repro.fleet.experiment.console import print_experiment
        from repro.fleet.experiment.result import ExperimentOptions as Experimenting
        from repro.fleet.experiment.result import run_experiment

        asked = Experimenting(
            given=scenario, root=results.runs, first=seed, seeds=of_experiment.seeds,
            workers=of_experiment.workers or WORKERS, resume=of_experiment.resume,
        )  # fmt: skip
        result = run_experiment(experiment, asked, sayer(results.quiet))
        if results.json:
            print_json(result)
        else:
            print_experiment(result, Output(highlight=False))
        raise typer.Exit(result.exit_code)
    if of_experiment != ExperimentOptions():
        raise UsageError(f"{scenario} is no experiment: --workers, --seeds and --resume are for one")
    found = scenarios.find(scenario)
    from repro.run.options import RunOptions
    from repro.schedule.schedule import Schedule

    schedule = Schedule(picker, seed if picker != "timed" else 0)
    options = RunOptions(seed, left_out.control, left_out.no_faults, schedule)
    finish(run_watched(found, options, results), results.json, report=not no_report)


@command(
    "repro replay sessions/ --concurrency 16",
    "repro replay a.traj.json --target http://127.0.0.1:30000 --time-scale 0",
    "repro replay claude-code/ --scale-tokens 0.05",
)
def replay(
    traces: Annotated[list[Path], typer.Argument(help="Trace files or folders, in any known format.")],
    *,
    server: Server,
    load: ReplayLoad,
    detection: Detection,
    seed: Seed = 0,
    results: RunResults,
) -> None:
    """Replay agent traces against the bundled stack or a server, with the detectors on."""
    from repro.load.shapes import Closed, Recorded
    from repro.scenario.from_traces import replay_scenario
    from repro.scenario.schema import LoadSpec

    spec = LoadSpec(
        sessions=load.sessions,
        concurrency=load.concurrency,
        scale_tokens=load.scale_tokens,
        time_scale=load.time_scale,
        answer_tokens_max=load.answer_tokens,
        history=load.history,
        shape=Recorded() if load.arrivals == "trace" else Closed(),
        on_anomaly=load.on_anomaly,
        anomaly_retries_max=load.anomaly_retries if load.on_anomaly == "abort-retry" else 1,
        nonces=detection.nonces,
    )
    scenario = replay_scenario(spec, traces, defects=load.defect or (), acceptance=detection.acceptance or ())
    url = url_of(server.target)
    if url and load.defect:
        raise UsageError("--defect needs the bundled stack: a defect cannot be put into a server at a URL")
    if server.api != "chat" and not url:
        raise UsageError(f"--api {server.api} needs a server at a URL; the bundled stack is asked over its chat API")
    if detection.calibration is not None and not url:
        raise UsageError("--calibration needs a server at a URL; the bundled stack has its own clean decode")
    from repro.run.options import RunOptions

    options = RunOptions(
        seed,
        url=url,
        api=server.api,
        calibration=str(detection.calibration or ""),
        false_alarm_rate=detection.false_alarm_rate,
        oracle_tokens=detection.oracle_tokens,
        redact=detection.redact,
    )
    finish(run_watched(scenario, options, results), results.json)


@command(
    "repro calibrate --target http://127.0.0.1:30000 --api generate --out mine.json",
    "repro replay sessions/ --target http://127.0.0.1:30000 --api generate --calibration mine.json",
)
def calibrate(
    target: Annotated[str, typer.Option(help="The URL of an OpenAI-compatible server.", metavar="URL")],
    out: Annotated[Path, typer.Option(help="The file to write.", metavar="FILE")],
    traces: Annotated[list[Path] | None, typer.Argument(help="What to ask; synthesised sessions if none.")] = None,
    *,
    api: Annotated[Api, typer.Option(help="Of the server; SGLang judges prompts on /generate only.")] = "chat",
    load: GentleLoad,
    seed: Seed = 0,
    results: CalibrationResults,
) -> None:
    """Learn what a server's clean answers look like to its oracles, for `repro replay --calibration FILE`.

    Exit codes: 0 written, 2 usage error, 4 the server cannot be asked or tells no log-probabilities, 5 Ctrl-C.
    """
    if not target.startswith(("http://", "https://")):
        raise UsageError(f'--target "{target}": give a URL such as http://127.0.0.1:30000')
    from repro.cli.progress import Watcher
    from repro.tools.calibrate import GentleLoad
    from repro.tools.calibrate import calibrate as learn

    gentle = GentleLoad(
        answers=load.answers,
        traces=tuple(map(str, traces or ())),
        concurrency=load.concurrency,
        prompt_tokens=load.prompt_tokens,
        answer_tokens=load.answer_tokens,
        tokens_max=load.tokens,
        seed=seed,
    )
    with Watcher(Output(stderr=True, quiet=results.quiet), time.monotonic, simulated=False) as watcher:
        learned = learn(target, out, gentle, api=api, clock_s=time.monotonic, watcher=watcher)
    if results.json:
        print_json(learned.as_json)
        return
    for line in learned.sentences:
        say(f"{out}: {line}")


@command("repro reproduce AgB8cGx6jWSla3F_f5JTBf9CjCvP...", "repro reproduce runs/my_race/20261124T101500Z-7")
def reproduce(
    what: Annotated[str, typer.Argument(metavar="TOKEN|RUN", help="A token, or the folder of a run.")],
    results: RunResults,
) -> None:
    """Run a token or a run folder again and prove that it is the same run.

    The fingerprints must be equal; else the exit code is 4, and the first event that differs is shown.

    A token of a scenario or trace of your own needs the folder of its run, here or in --runs.
    """
    from repro.search.reproduce import prove

    recipe = recipe_with_notes(what, results.runs)
    outcome = run_watched(recipe.scenario, recipe.options, results)
    say(prove(recipe, outcome), style="green")
    finish(outcome, results.json)


@command("repro campaign hicache_early_read --seeds 20 --no-faults")
def campaign(
    scenario: Annotated[str, typer.Argument(help="A bundled scenario or a .toml file.")],
    *,
    seeds: Annotated[int, number("How many seeds, from --first on.")] = 20,
    first: Annotated[int, number("The first seed.", least=0, most=2**62)] = 0,
    workers: Annotated[int, number("Runs at once, one thread each.")] = WORKERS,
    no_faults: Annotated[bool, typer.Option("--no-faults", help="Also the defect without faults.")] = False,
    results: CampaignResults,
) -> None:
    """Run a scenario over many seeds, with its defect and as control: how often found, how often silent.

    Exit codes: 0 every run with the defect found, every control clean; 1 not so; 4 runs died; 5 Ctrl-C.
    """
    from repro.scenario.schema import find

    found = find(scenario)
    if not found.defects:
        raise UsageError(f"{scenario} has no defect: there is nothing to find; use `repro run`")
    from repro.fleet.campaign import SIDES, corrupted_rate, exit_code, first_findings, run_campaign

    names = SIDES if no_faults else SIDES[:2]

    def done(side: str, seed: int, verdict: str) -> None:
        if not results.quiet:
            say(f"{side}  seed {seed}  {verdict}")

    sides = run_campaign(found, range(first, first + seeds), names, root=results.runs, workers=workers, on_end=done)
    if results.json:
        print_json({"seeds": seeds, "sides": [msgspec.to_builtins(side) for side in sides]})
        raise typer.Exit(exit_code(sides, seeds))
    output, missing = Output(highlight=False), 0
    table = Table("side", "runs", "anomaly", "clean", "other", "died")
    for side in sides:
        ran, died = len(side.verdicts), len(side.errors)
        other = ran - side.count("anomaly") - side.count("clean")
        table.add_row(side.name, *map(str, (ran + died, side.count("anomaly"), side.count("clean"), other, died)))
        missing += seeds - ran - died
    output.print(table)
    for side in sides:
        output.print(f"corrupted requests, simulated, {side.name}: {corrupted_rate(side)}")
    for layer, (runs_found, requests) in first_findings(sides[0]).items():
        output.print(f"{layer}: in {runs_found} runs of the defect, first after {requests} requests")
    if missing:
        total = seeds * len(sides)
        say(f"stopped by Ctrl-C: {missing} of {total} runs are missing; run folders are in {results.runs}")
    raise typer.Exit(exit_code(sides, seeds))


@command("repro profile runs/replay/20261124T101500Z-7 --out glm.json")
def profile(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of clean runs.")],
    out: Annotated[Path, typer.Option(help="The file to write.", metavar="FILE")],
    model: Annotated[str, typer.Option(help="What the model is called; kept as a note.", metavar="NAME")] = "",
    tokens_min: Annotated[int, number("Learn from answers of at least so many tokens.")] = 128,
) -> None:
    """Learn how a model accepts its drafts when all is well, for `repro replay --acceptance profile=FILE`."""
    from repro.tools.profile import learn_profile

    learned = learn_profile(runs, out, model=model, tokens_min=tokens_min)
    rate_min = learned.profile.false_alarm_rate_min
    say(
        f"{out}: {learned.profile.answers:,} answers, {learned.windows:,} windows; false_alarm_rate can be "
        f"{rate_min:g} at the least; the change detection convicts {learned.alarms:,} of these answers"
    )


@command("repro report runs/hicache_early_read/20261124T101500Z-7")
def report(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, also of one that was killed.")],
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Write the report, print nothing.")] = False,
) -> None:
    """Write the HTML report of a run again and print its summary."""
    from reports.run.html import write_report
    from reports.run.summary import summarise
    from reports.run.terminal import print_summary
    from repro.record.view import open_run

    opened, path = open_run(folder), ""
    try:
        path = str(write_report(opened))
    finally:  # a full disk takes the page, not the summary
        if not quiet:
            print_summary(opened, summarise(opened), Output(), report=path)
