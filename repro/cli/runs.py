"""Commands that run a load and judge it: a scenario, an experiment, traces, a token, many seeds."""

import time
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import typer
from rich.table import Table

import repro.fleet.experiment.plan as experiments
import repro.scenario.schema as scenarios
from repro.base.errors import UsageError
from repro.cli.common import (
    RUNS,
    WORKERS,
    Json,
    Output,
    Quiet,
    Runs,
    Seed,
    Threads,
    app,
    errors,
    examples,
    finish,
    guarded,
    print_json,
    run_watched,
)

BUNDLED = "bundled"
MOST = {name: int(most) for name, (_, most) in scenarios.LOAD_RANGES.items()}


@app.command(
    epilog=examples(
        "repro run hicache_early_read --seed 7",
        "repro run my_race.toml --control --json",
        "repro run pd_scaling_pain --workers 4",
    )
)
@guarded
def run(
    scenario: Annotated[str, typer.Argument(help="A bundled scenario or experiment (see `repro list`), or a file.")],
    seed: Seed = 0,
    control: Annotated[bool, typer.Option("--control", help="The same load and faults, no defect.")] = False,
    no_faults: Annotated[bool, typer.Option("--no-faults", help="The defect alone, nothing perturbed.")] = False,
    picker: Annotated[
        Literal["timed", "random"],
        typer.Option(help="Who goes next: timed is what a real machine does, random explores."),
    ] = "timed",
    no_report: Annotated[bool, typer.Option("--no-report", help="Leave the HTML report to `repro report`.")] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help=f"Of an experiment: runs at once, {WORKERS} if not given.", metavar="N")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Of an experiment: at most so many seeds a part.", metavar="N")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Of an experiment: continue the one in this folder.", metavar="FOLDER")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    runs: Runs = RUNS,
    threads: Threads = None,
) -> None:
    """Run a scenario on the bundled stack and judge it, or an experiment: a scenario in steps.

    Exit codes of an experiment: 0 every step came to what its file expects, 1 not so, 4 runs died, 5 runs are missing.
    """
    experiment = experiments.find(scenario)
    if experiment is not None:
        if control or no_faults or picker != "timed" or no_report or threads:
            raise UsageError(
                f"{scenario} is an experiment, whose steps say what they run; it takes --seed, --seeds, --workers, "
                "--resume, --runs, --json and --quiet"
            )
        from repro.fleet.experiment.command import Command, run_experiment

        command = Command(scenario, runs, seed, seeds, workers or WORKERS, resume, json)
        out, told = Output(highlight=False), Output(stderr=True, highlight=False, quiet=quiet)
        raise typer.Exit(run_experiment(experiment, command, out, told))
    if workers or seeds or resume:
        raise UsageError(f"{scenario} is no experiment: --workers, --seeds and --resume are for one")
    found = scenarios.find(scenario)
    from repro.run.options import RunOptions
    from repro.schedule.schedule import Schedule

    options = RunOptions(seed, control, no_faults, Schedule(picker, seed if picker != "timed" else 0))
    outcome = run_watched(found, options, runs, quiet, threads)
    finish(outcome, json, report=not no_report)


@app.command(
    epilog=examples(
        "repro replay sessions/ --concurrency 16",
        "repro replay a.traj.json --target http://127.0.0.1:30000 --time-scale 0",
        "repro replay claude-code/ --scale-tokens 0.05",
    )
)
@guarded
def replay(
    traces: Annotated[list[Path], typer.Argument(help="Trace files or folders, in any known format.")],
    target: Annotated[str, typer.Option(help="bundled, or the URL of an OpenAI-compatible server.")] = BUNDLED,
    api: Annotated[
        Literal["chat", "completions", "generate"],
        typer.Option(help="Of the server; SGLang tells the counts of its drafts on /generate only."),
    ] = "chat",
    concurrency: Annotated[
        int, typer.Option(min=1, max=MOST["concurrency"], help="Sessions under way at once.", metavar="N")
    ] = 16,
    scale_tokens: Annotated[
        float,
        typer.Option(min=1e-4, max=1, help="Shrink lengths, keep prefixes: 0.05 is a twentieth.", metavar="X"),
    ] = 1.0,
    time_scale: Annotated[
        float,
        typer.Option(min=0, max=MOST["time_scale"], help="Of think times and arrivals; 0: no waiting.", metavar="X"),
    ] = 1.0,
    sessions: Annotated[
        int, typer.Option(min=1, max=MOST["sessions"], help="At most so many sessions.", metavar="N")
    ] = MOST["sessions"],
    answer_tokens: Annotated[
        int, typer.Option(min=1, max=MOST["answer_tokens_max"], help="The longest answer asked for.", metavar="N")
    ] = 128,
    history: Annotated[
        Literal["recorded", "generated"], typer.Option(help="Whose answers later turns build on.")
    ] = "recorded",
    arrivals: Annotated[
        Literal["closed", "trace"], typer.Option(help="closed: the next session starts when one ends.")
    ] = "closed",
    defect: Annotated[
        list[str] | None, typer.Option(help="Give the bundled stack this defect (see `repro list`).", metavar="NAME")
    ] = None,
    on_anomaly: Annotated[
        Literal["report", "abort-retry"],
        typer.Option(help="abort-retry: give an answer up that is convicted in its stream, and ask again."),
    ] = "report",
    anomaly_retries: Annotated[
        int, typer.Option(min=0, max=MOST["anomaly_retries_max"], help="At most so often a turn.", metavar="N")
    ] = 1,
    calibration: Annotated[
        Path | None,
        typer.Option(help="Of the server, from `repro calibrate`: its answers are checked.", metavar="FILE"),
    ] = None,
    false_alarm_rate: Annotated[
        float, typer.Option(min=1e-9, max=0.5, help="Of an answer that is checked, for each oracle.", metavar="X")
    ] = 0.001,
    oracle_tokens: Annotated[
        int, typer.Option(min=1, help="That checking may take, prompts included.", metavar="N")
    ] = 10_000_000,
    redact: Annotated[bool, typer.Option("--redact", help="No text of a request or an answer in the record.")] = False,
    nonces: Annotated[
        bool, typer.Option("--nonces", help="Plant a nonce in each session, by which a leak into another is known.")
    ] = False,
    acceptance: Annotated[
        list[str] | None,
        typer.Option(
            help="Ask for the acceptance detector: length_min=1.4, rate_max=0.96, tokens_min=128, profile=FILE, "
            "false_alarm_rate=0.001, arl_tokens=1e7.",
            metavar="KEY=VALUE",
        ),
    ] = None,
    seed: Seed = 0,
    json: Json = False,
    quiet: Quiet = False,
    runs: Runs = RUNS,
    threads: Threads = None,
) -> None:
    """Replay agent traces against the bundled stack or a server, with the detectors on."""
    from repro.scenario.from_traces import replay_scenario

    scenario = replay_scenario(
        traces,
        concurrency=concurrency,
        scale_tokens=scale_tokens,
        time_scale=time_scale,
        sessions=sessions,
        answer_tokens=answer_tokens,
        history=history,
        arrivals=arrivals,
        defects=tuple(defect or ()),
        on_anomaly=on_anomaly,
        anomaly_retries=anomaly_retries,
        acceptance=tuple(acceptance or ()),
        nonces=nonces,
    )
    url = "" if target == BUNDLED else target
    if target != BUNDLED and not target.startswith(("http://", "https://")):
        raise UsageError(f'--target "{target}": give {BUNDLED}, or a URL such as http://127.0.0.1:30000')
    if url and defect:
        raise UsageError("--defect needs the bundled stack: a defect cannot be put into a server at a URL")
    if api != "chat" and not url:
        raise UsageError(f"--api {api} needs a server at a URL; the bundled stack is asked over its chat API")
    if calibration is not None and not url:
        raise UsageError("--calibration needs a server at a URL; the bundled stack has its own clean decode")
    from repro.run.options import RunOptions

    options = RunOptions(
        seed,
        url=url,
        api=api,
        calibration=str(calibration or ""),
        false_alarm_rate=false_alarm_rate,
        oracle_tokens=oracle_tokens,
        redact=redact,
    )
    finish(run_watched(scenario, options, runs, quiet, threads), json)


@app.command(
    epilog=examples(
        "repro calibrate --target http://127.0.0.1:30000 --api generate --out mine.json",
        "repro replay sessions/ --target http://127.0.0.1:30000 --api generate --calibration mine.json",
    )
)
@guarded
def calibrate(
    target: Annotated[str, typer.Option(help="The URL of an OpenAI-compatible server.", metavar="URL")],
    out: Annotated[Path, typer.Option(help="The file to write.", metavar="FILE")],
    traces: Annotated[list[Path] | None, typer.Argument(help="What to ask; synthesised sessions if none.")] = None,
    api: Annotated[
        Literal["chat", "completions", "generate"],
        typer.Option(help="Of the server; SGLang judges prompts on /generate only."),
    ] = "chat",
    answers: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="999 can vouch for a false-alarm rate of 0.001.", metavar="N")
    ] = 1000,
    concurrency: Annotated[
        int, typer.Option(min=1, max=MOST["concurrency"], help="Sessions under way at once; be gentle.", metavar="N")
    ] = 4,
    prompt_tokens: Annotated[
        int, typer.Option(min=400, max=MOST["prompt_tokens"], help="Of synthesised sessions.", metavar="N")
    ] = 2048,
    answer_tokens: Annotated[
        int, typer.Option(min=1, max=MOST["answer_tokens_max"], help="The longest answer asked for.", metavar="N")
    ] = 128,
    tokens: Annotated[
        int, typer.Option(min=1, help="That checking may take, prompts included.", metavar="N")
    ] = 100_000_000,
    seed: Seed = 0,
    json: Annotated[bool, typer.Option("--json", help="Print what came of it as one JSON object.")] = False,
    quiet: Quiet = False,
) -> None:
    """Learn what a server's clean answers look like to its oracles, for `repro replay --calibration FILE`.

    Exit codes: 0 written, 2 usage error, 4 the server cannot be asked or tells no log-probabilities, 5 Ctrl-C.
    """
    if not target.startswith(("http://", "https://")):
        raise UsageError(f'--target "{target}": give a URL such as http://127.0.0.1:30000')
    from repro.cli.progress import Watcher
    from repro.tools.calibrate import Gentle
    from repro.tools.calibrate import calibrate as learn

    gentle = Gentle(
        answers=answers,
        traces=tuple(map(str, traces or ())),
        concurrency=concurrency,
        prompt_tokens=prompt_tokens,
        answer_tokens=answer_tokens,
        tokens_max=tokens,
        seed=seed,
    )
    with Watcher(Output(stderr=True, quiet=quiet), time.monotonic, simulated=False) as watcher:
        learned = learn(target, out, gentle, api=api, clock_s=time.monotonic, watcher=watcher)
    if json:
        print_json(learned.told)
        return
    for line in learned.in_words:
        errors.print(f"{out}: {line}", markup=False, soft_wrap=True)


@app.command(
    epilog=examples(
        "repro reproduce AgB8cGx6jWSla3F_f5JTBf9CjCvP...", "repro reproduce runs/my_race/20261124T101500Z-7"
    )
)
@guarded
def reproduce(
    what: Annotated[str, typer.Argument(metavar="TOKEN|RUN", help="A token, or the folder of a run.")],
    json: Json = False,
    quiet: Quiet = False,
    runs: Runs = RUNS,
    threads: Threads = None,
) -> None:
    """Run a token or a run folder again and prove that it is the same run.

    The fingerprints must be equal; else the exit code is 4, and the first event that differs is shown.

    A token of a scenario or trace of your own needs the folder of its run, here or in --runs.
    """
    from repro.search.reproduce import prove, recipe_of

    recipe = recipe_of(what, runs)
    for warning in recipe.warnings:
        errors.print(f"note: {warning}", markup=False, soft_wrap=True)
    outcome = run_watched(recipe.scenario, recipe.options, runs, quiet, threads)
    errors.print(prove(recipe, outcome), style="green", markup=False, soft_wrap=True)
    finish(outcome, json)


@app.command(epilog=examples("repro campaign hicache_early_read --seeds 20 --no-faults"))
@guarded
def campaign(
    scenario: Annotated[str, typer.Argument(help="A bundled scenario or a .toml file.")],
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds, from --first on.", metavar="N")] = 20,
    first: Annotated[int, typer.Option(min=0, max=2**62, help="The first seed.", metavar="N")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Runs at once, one thread each.", metavar="N")] = 2,
    no_faults: Annotated[bool, typer.Option("--no-faults", help="Also the defect without faults.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print all verdicts as one JSON object.")] = False,
    quiet: Quiet = False,
    runs: Runs = RUNS,
) -> None:
    """Run a scenario over many seeds, with its defect and as control: how often found, how often silent.

    Exit codes: 0 every run with the defect found, every control clean; 1 not so; 4 runs died; 5 Ctrl-C.
    """
    if not scenarios.find(scenario).defects:
        raise UsageError(f"{scenario} has no defect: there is nothing to find; use `repro run`")
    from repro.fleet.campaign import SIDES, corrupted_rate, exit_code, first_findings, run_campaign

    names = list(SIDES) if no_faults else list(SIDES)[:2]

    def done(side: str, seed: int, verdict: str) -> None:
        if not quiet:
            errors.print(f"{side}  seed {seed}  {verdict}", markup=False, soft_wrap=True)

    sides = run_campaign(scenario, range(first, first + seeds), names, root=runs, workers=workers, done=done)
    if json:
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
        errors.print(
            f"stopped by Ctrl-C: {missing} of {seeds * len(sides)} runs are missing; run folders are in {runs}"
        )
    raise typer.Exit(exit_code(sides, seeds))


@app.command(epilog=examples("repro profile runs/replay/20261124T101500Z-7 --out glm.json"))
@guarded
def profile(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of clean runs.")],
    out: Annotated[Path, typer.Option(help="The file to write.", metavar="FILE")],
    model: Annotated[str, typer.Option(help="What the model is called; kept as a note.", metavar="NAME")] = "",
    tokens_min: Annotated[
        int, typer.Option(min=1, help="Learn from answers of at least so many tokens.", metavar="N")
    ] = 128,
) -> None:
    """Learn how a model accepts its drafts when all is well, for `repro replay --acceptance profile=FILE`."""
    from repro.tools.profile import learn_profile

    learned = learn_profile(runs, out, model=model, tokens_min=tokens_min)
    told = f"{learned.profile.answers:,} answers, {learned.windows:,} windows; false_alarm_rate can be"
    told += f" {learned.profile.false_alarm_rate_min:g} at the least; the change detection convicts"
    errors.print(f"{out}: {told} {learned.alarms:,} of these answers", markup=False, soft_wrap=True)


@app.command(epilog=examples("repro report runs/hicache_early_read/20261124T101500Z-7"))
@guarded
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
