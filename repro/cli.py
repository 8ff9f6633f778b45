"""The command line: `repro --help` lists the commands.

Standard output gets the result, and with --json one object and nothing else; progress and prose go to
standard error. What goes wrong is one sentence there, and an exit code (EXIT_CODES below).
"""

import functools
import os
import sys
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, ParamSpec, TypeVar

import msgspec
import typer
from rich.console import Console
from rich.table import Table

import repro.experiment.plan as experiments
import repro.scenario as scenarios
from repro.base.errors import HarnessError, ReproError, StoppedError, UsageError

if TYPE_CHECKING:  # these bring torch and pandas with them: a usage error is told without the wait
    from repro.run import Outcome, RunOptions

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1, help="The one seed of the run.", metavar="N")]
Json = Annotated[bool, typer.Option("--json", help="Print the verdict as one JSON object and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on standard error.")]
Runs = Annotated[Path, typer.Option("--runs", help="Where run folders go.", metavar="FOLDER")]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads", min=1, max=2, help="Processor threads for the model; the bits are the same.", metavar="N"
    ),
]
RUNS = Path("runs")
WORKERS = 2
FINDINGS_SHOWN = 20  # of `repro detect`
HUNTED = ("ordering", "canary", "divergence", "text")  # layers of the truth
BUNDLED = "bundled"
MOST = {name: int(most) for name, (_, most) in scenarios.LOAD_RANGES.items()}
EXIT_CODES = "Exit codes: 0 clean, 1 anomaly, 2 usage error, 3 vacuous, 4 failed, 5 inconclusive."
WORDS = {2: "usage_error", 4: "failed", 5: "inconclusive"}  # what --json says when there is no verdict


class _Output(Console):
    """A console whose reader may leave: rich itself would exit with 1, which means an anomaly here."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Reproduces races of LLM serving: drives agent sessions against a GLM-5 stack, perturbs its timing, "
    "tells a corrupted answer from a healthy one, and hands back a token that replays it.",
    epilog=EXIT_CODES,
)
errors = _Output(stderr=True, highlight=False)


def _examples(*lines: str) -> str:
    """Return the end of a command's help; a blank line keeps rich from joining the lines."""
    return "\n\n".join(("Examples:", *lines))


def _told(command: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Turn whatever goes wrong into a sentence on standard error and an exit code."""

    @functools.wraps(command)
    def wrapped(*args: Parameters.args, **keywords: Parameters.kwargs) -> Result:
        try:
            return command(*args, **keywords)
        except typer.Exit:
            raise
        except ReproError as error:
            raise _exit(error, bool(keywords.get("json"))) from error
        except KeyboardInterrupt as error:
            stopped = StoppedError("stopped by Ctrl-C before anything was recorded")
            raise _exit(stopped, bool(keywords.get("json"))) from error
        except BrokenPipeError as error:
            _discard_output()
            raise typer.Exit(0) from error
        except OSError as error:
            failed = HarnessError(f"{error.filename or 'standard output'}: {error.strerror}")
            raise _exit(failed, False) from error
        except Exception as error:  # Python's own exit code 1 would read as an anomaly
            errors.print("".join(traceback.format_exception(error)), markup=False, soft_wrap=True)
            crash = HarnessError(f"a bug of the harness: {type(error).__name__}: {error}; the lines above say where")
            raise _exit(crash, bool(keywords.get("json"))) from error

    return wrapped


@app.command(
    epilog=_examples(
        "repro run hicache_early_read --seed 7",
        "repro run my_race.toml --control --json",
        "repro run pd_scaling_pain --workers 4",
    )
)
@_told
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
        from repro.experiment.command import Command, run_experiment

        command = Command(scenario, runs, seed, seeds, workers or WORKERS, resume, json)
        out, told = _Output(highlight=False), _Output(stderr=True, highlight=False, quiet=quiet)
        raise typer.Exit(run_experiment(experiment, command, out, told))
    if workers or seeds or resume:
        raise UsageError(f"{scenario} is no experiment: --workers, --seeds and --resume are for one")
    found = scenarios.find(scenario)
    from repro.run import RunOptions
    from repro.schedule.schedule import Schedule

    options = RunOptions(seed, control, no_faults, Schedule(picker, seed if picker != "timed" else 0))
    outcome = _run(found, options, runs, quiet, threads)
    _finish(outcome, json, report=not no_report)


@app.command(
    epilog=_examples(
        "repro replay sessions/ --concurrency 16",
        "repro replay a.traj.json --target http://127.0.0.1:30000 --time-scale 0",
        "repro replay claude-code/ --scale-tokens 0.05",
    )
)
@_told
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
    from repro.replay import replay_scenario

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
    from repro.run import RunOptions

    options = RunOptions(
        seed,
        url=url,
        api=api,
        calibration=str(calibration or ""),
        false_alarm_rate=false_alarm_rate,
        oracle_tokens=oracle_tokens,
        redact=redact,
    )
    _finish(_run(scenario, options, runs, quiet, threads), json)


@app.command(
    epilog=_examples(
        "repro calibrate --target http://127.0.0.1:30000 --api generate --out mine.json",
        "repro replay sessions/ --target http://127.0.0.1:30000 --api generate --calibration mine.json",
    )
)
@_told
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
    from repro.calibrate import Gentle
    from repro.calibrate import calibrate as learn
    from repro.view import Watcher

    gentle = Gentle(
        answers=answers,
        traces=tuple(map(str, traces or ())),
        concurrency=concurrency,
        prompt_tokens=prompt_tokens,
        answer_tokens=answer_tokens,
        tokens_max=tokens,
        seed=seed,
    )
    with Watcher(_Output(stderr=True, quiet=quiet), time.monotonic, simulated=False) as watcher:
        learned = learn(
            target, out, gentle, api=api, clock_s=time.monotonic, progress=watcher.load, checked=watcher.oracle
        )
    if json:
        _print_json(learned.told)
        return
    for line in learned.in_words:
        errors.print(f"{out}: {line}", markup=False, soft_wrap=True)


@app.command(
    epilog=_examples(
        "repro reproduce AgB8cGx6jWSla3F_f5JTBf9CjCvP...", "repro reproduce runs/my_race/20261124T101500Z-7"
    )
)
@_told
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
    from repro.reproduce import prove, recipe_of

    recipe = recipe_of(what, runs)
    for warning in recipe.warnings:
        errors.print(f"note: {warning}", markup=False, soft_wrap=True)
    outcome = _run(recipe.scenario, recipe.options, runs, quiet, threads)
    errors.print(prove(recipe, outcome), style="green", markup=False, soft_wrap=True)
    _finish(outcome, json)


@app.command(epilog=_examples("repro mutate", "repro mutate generic_pd --seeds 5 --json"))
@_told
def mutate(
    workloads: Annotated[
        list[str] | None, typer.Argument(help="Scenarios without a defect; the five generic ones if none.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of each workload, from 0 on.", metavar="N")] = 2,
    workers: Annotated[int, typer.Option(min=1, help="Mutants at once, one thread each.", metavar="N")] = WORKERS,
    json: Annotated[bool, typer.Option("--json", help="Print all mutants as one JSON object.")] = False,
    quiet: Quiet = False,
) -> None:
    """Take every wait, record, acknowledgement, pin and guard of the stack away, one at a time: who notices?

    Exit codes: 0 every mutant is caught or shown redundant; 1 some survive; 4 a workload is not clean as it is;
    5 Ctrl-C.
    """
    from repro.mutate.command import run_mutate

    names = workloads or [name for name in scenarios.bundled_names() if name.startswith("generic_")]
    out, told = _Output(highlight=False), _Output(stderr=True, highlight=False, quiet=quiet)
    raise typer.Exit(run_mutate([scenarios.find(name) for name in names], range(seeds), workers, json, out, told))


@app.command(epilog=_examples("repro campaign hicache_early_read --seeds 20 --no-faults"))
@_told
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
    from repro.campaign import SIDES, corrupted_rate, exit_code, first_findings, run_campaign

    names = list(SIDES) if no_faults else list(SIDES)[:2]

    def done(side: str, seed: int, verdict: str) -> None:
        if not quiet:
            errors.print(f"{side}  seed {seed}  {verdict}", markup=False, soft_wrap=True)

    sides = run_campaign(scenario, range(first, first + seeds), names, root=runs, workers=workers, done=done)
    if json:
        _print_json({"seeds": seeds, "sides": [msgspec.to_builtins(side) for side in sides]})
        raise typer.Exit(exit_code(sides, seeds))
    output, missing = _Output(highlight=False), 0
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


@app.command(epilog=_examples("repro bench layersplit", "repro bench layersplit --lengths 40000 --json"))
@_told
def bench(
    study: Annotated[Literal["layersplit"], typer.Argument(help="The study.")],
    lengths: Annotated[
        list[int] | None, typer.Option(min=1024, max=1_000_000, help="Prompt lengths, in tokens.", metavar="N")
    ] = None,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="Instead: how one length's row moves with what is assumed.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes at once.", metavar="N")] = 2,
    json: Annotated[bool, typer.Option("--json", help="Print the rows as one JSON object.")] = False,
    quiet: Quiet = False,
) -> None:
    """Run a throughput study in the cost model: the real scheduler and caches, simulated time."""
    from repro.bench.command import run_lengths, run_sensitivity, table
    from repro.bench.layersplit import LENGTHS

    def done(told: str) -> None:
        if not quiet:
            errors.print(told, markup=False, soft_wrap=True)

    if sensitivity:
        if lengths:
            raise UsageError("--sensitivity looks at one length; leave --lengths out")
        rows = run_sensitivity(workers, done)
    else:
        found = run_lengths(tuple(lengths or LENGTHS), workers, done)
        rows = {f"{each.length:,}": each for each in found}
    if json:
        _print_json({"rows": [{"name": name} | msgspec.to_builtins(each) for name, each in rows.items()]})
    else:
        _Output(highlight=False).print(table(rows, bars=not sensitivity))


@app.command(
    epilog=_examples(
        "repro hunt sched_double_free", "repro hunt my_race.toml --all --time 600", "repro hunt X --control"
    )
)
@_told
def hunt(
    scenario: Annotated[str, typer.Argument(help="A bundled scenario or a .toml file.")],
    strategy: Annotated[
        Literal["random", "pct2", "pct3", "pct5", "pos", "surw", "portfolio"],
        typer.Option(help="How schedules are chosen; portfolio learns which of the others pay, and mutates."),
    ] = "portfolio",
    budget: Annotated[int, typer.Option(min=1, max=1_000_000, help="At most so many schedules.", metavar="N")] = 200,
    time_s: Annotated[float | None, typer.Option("--time", min=1, help="At most so long.", metavar="SECONDS")] = None,
    every: Annotated[bool, typer.Option("--all", help="Go on after the first finding; collect all causes.")] = False,
    layer: Annotated[
        list[str] | None,
        typer.Option(help="What counts: ordering, canary, divergence, text; may be repeated.", metavar="LAYER"),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="The scenario's whole load, not a light one.")] = False,
    numerics: Annotated[
        Literal["stamps", "tensors"], typer.Option(help="stamps: orders and owners only, many times faster.")
    ] = "stamps",
    workers: Annotated[int, typer.Option(min=1, help="Schedules at once, one thread each.", metavar="N")] = WORKERS,
    corpus: Annotated[
        Path | None, typer.Option(help="Go on from what an earlier hunt has learnt.", metavar="FOLDER")
    ] = None,
    seed: Seed = 0,
    control: Annotated[bool, typer.Option("--control", help="The same load and faults, no defect.")] = False,
    no_faults: Annotated[bool, typer.Option("--no-faults", help="The defect alone, nothing perturbed.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    runs: Runs = RUNS,
) -> None:
    """Search the schedules of a scenario for races, with a light load; each finding is replayed before it is told.

    Exit codes: 1 found, 0 nothing found within the budget, 3 no schedule did what the scenario is about, 4 failed,
    5 nothing proved, but some schedules could not be judged, or Ctrl-C came first.
    """
    found = scenarios.find(scenario)
    layers = tuple(layer or HUNTED)
    for each in layers:
        if each not in HUNTED:
            raise UsageError(f'--layer "{each}": give one of {", ".join(HUNTED)}')
    from repro.hunt.command import Command, run_hunt
    from repro.hunt.hunt import Quarry

    quarry = msgspec.convert(
        {"search": strategy, "budget": budget, "time_s": time_s, "layers": layers, "everything": every}, Quarry
    )
    command = Command(
        quarry,
        runs,
        seed,
        workers,
        control,
        no_faults,
        full=full,
        stamps=numerics == "stamps",
        corpus=corpus,
        json=json,
    )
    told = _Output(stderr=True, highlight=False, quiet=quiet)
    raise typer.Exit(run_hunt(found, command, _Output(highlight=False), told, time.monotonic))


@app.command(
    epilog=_examples(
        "repro shrink AwBzIKh1tn-w6nJTBdNnJS7b79yAAOANPw...", "repro shrink runs/my_race/20261124T101500Z-7"
    )
)
@_told
def shrink(
    what: Annotated[str, typer.Argument(metavar="TOKEN|RUN", help="A token, or the folder of a run.")],
    signature: Annotated[
        str, typer.Option(help="Which finding to keep: a part of its cause; the first if not given.", metavar="TEXT")
    ] = "",
    budget: Annotated[int, typer.Option(min=2, max=100_000, help="At most so many replays.", metavar="N")] = 400,
    workers: Annotated[int, typer.Option(min=1, help="Replays at once, one thread each.", metavar="N")] = WORKERS,
    out: Annotated[Path, typer.Option(help="Where the scenario and the test go.", metavar="FOLDER")] = Path("shrunk"),
    json: Json = False,
    quiet: Quiet = False,
    runs: Runs = RUNS,
) -> None:
    """Make a finding small: less load, fewer faults, fewer deviations of the schedule, and the same cause.

    Writes a scenario, and a test that fails with the defect and passes with the guard. Exit codes: 1 shrunk, 4 the
    result is no finding with the guard in place, or not the same run in a new process.
    """
    from repro.hunt.reduce import Command, run_shrink
    from repro.reproduce import recipe_of

    recipe = recipe_of(what, runs)
    for warning in recipe.warnings:
        errors.print(f"note: {warning}", markup=False, soft_wrap=True)
    command = Command(runs, signature, budget, workers, json)
    told = _Output(stderr=True, highlight=False, quiet=quiet)
    raise typer.Exit(run_shrink(recipe.scenario, recipe.options, command, _Output(highlight=False), told, out))


@app.command(
    epilog=_examples(
        "repro detect answers.jsonl", "repro detect output.jsonl input.jsonl --json", "repro detect --events t"
    )
)
@_told
def detect(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Answers: JSON Lines, JSON, OpenAI batch output and input, plain text.")
    ] = None,
    events: Annotated[
        Path | None,
        typer.Option("--events", help="Instead: events, one JSON object a line; detectors/EVENTS.md.", metavar="FILE"),
    ] = None,
    redact: Annotated[bool, typer.Option("--redact", help="Keep the answers' texts out of what is printed.")] = False,
    json: Json = False,
) -> None:
    """Judge what there already is: the texts of answers, or the events of any engine.

    Answers: garble, loops, rare tokens, other sessions' nonces (lines with session and nonce), new against the prompt
    where there is one. Events: accesses to a page that nothing orders, or under a stale owner.

    Exit codes: 0 clean, 1 found, 2 a line or file is wrong, 3 there was nothing to judge.
    """
    if (events is None) == (not files):
        raise UsageError("give either files of answers, or --events FILE")
    output = _Output(highlight=False)
    if files:
        from repro.detect_answers import detect_answers

        found = detect_answers(files, redact=redact)
        if json:
            _print_json(found)
            raise typer.Exit(found.exit_code)
        count = f"{found.answers:,} answers, {found.with_prompt:,} with their prompt; {found.unanswered:,} unanswered"
        output.print(f"{found.verdict.upper()}  {count}", markup=False, soft_wrap=True)
        for name, convicted in found.detectors.items():
            output.print(f"{convicted:>6} x  {name}", markup=False)
        for each in found.findings[:FINDINGS_SHOWN]:
            output.print(f"{each.where} {each.id}: {each.finding.claim}", markup=False, soft_wrap=True)
        if len(found.findings) > FINDINGS_SHOWN:
            output.print(f"and more; --json shows {len(found.findings):,}", markup=False)
        raise typer.Exit(found.exit_code)
    assert events is not None
    from repro.detect import detect as judge_events

    told = judge_events(events)
    if json:
        _print_json(told)
        raise typer.Exit(told.exit_code)
    output.print(f"{told.verdict.upper()}  {told.events:,} events", markup=False)
    for finding in told.findings:
        output.print(f"{finding.count} x  {finding.claim}", markup=False, soft_wrap=True)
        if "missing_edge" in finding.evidence:
            output.print(f"  missing edge: {finding.evidence['missing_edge']}", markup=False, soft_wrap=True)
    raise typer.Exit(told.exit_code)


@app.command(epilog=_examples("repro profile runs/replay/20261124T101500Z-7 --out glm.json"))
@_told
def profile(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of clean runs.")],
    out: Annotated[Path, typer.Option(help="The file to write.", metavar="FILE")],
    model: Annotated[str, typer.Option(help="What the model is called; kept as a note.", metavar="NAME")] = "",
    tokens_min: Annotated[
        int, typer.Option(min=1, help="Learn from answers of at least so many tokens.", metavar="N")
    ] = 128,
) -> None:
    """Learn how a model accepts its drafts when all is well, for `repro replay --acceptance profile=FILE`."""
    from repro.profile import learn_profile

    learned = learn_profile(runs, out, model=model, tokens_min=tokens_min)
    told = f"{learned.profile.answers:,} answers, {learned.windows:,} windows; false_alarm_rate can be"
    told += f" {learned.profile.false_alarm_rate_min:g} at the least; the change detection convicts"
    errors.print(f"{out}: {told} {learned.alarms:,} of these answers", markup=False, soft_wrap=True)


@app.command(
    epilog=_examples(
        "repro nightly --suite smoke --out night",
        "repro nightly --suite nightly --time 2h --baseline latest",
        "repro nightly --suite my_suite.toml --target http://127.0.0.1:30000",
    )
)
@_told
def nightly(
    suite: Annotated[str, typer.Option(help="A bundled suite (smoke, nightly, bank, clean), or a file.")] = "nightly",
    time: Annotated[str, typer.Option(help="Take seed after seed until then: 2h, 30m, 90s.", metavar="TIME")] = "",
    requests: Annotated[
        int | None, typer.Option(min=1, help="Take seed after seed until so many requests.", metavar="N")
    ] = None,
    seed: Seed = 0,
    defect: Annotated[str, typer.Option(help="Give the bundled stack this defect.", metavar="NAME")] = "",
    target: Annotated[str, typer.Option(help="bundled, or the URL of an OpenAI-compatible server.")] = BUNDLED,
    api: Annotated[Literal["chat", "completions", "generate"], typer.Option(help="Of the server.")] = "chat",
    reference: Annotated[
        str, typer.Option(help="Asked the same, for the throughput gate: a server's URL, or bundled.", metavar="URL")
    ] = "",
    baseline: Annotated[str, typer.Option(help="The night to compare with, or latest.", metavar="RUN")] = "",
    out: Annotated[Path | None, typer.Option(help="The night's folder; past nights lie beside it.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the night in --out.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Runs at once.", metavar="N")] = WORKERS,
    ray: Annotated[
        str | None, typer.Option(help="Spread the runs over this Ray cluster (extra: cluster).", metavar="ADDRESS")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    runs: Runs = RUNS,
) -> None:
    """Run a suite unattended and say worse, same or better, with evidence.

    Writes junit.xml, summary.md, index.html, nightly.json and the runs that are not clean. Exit code 3: more vacuous
    runs than the suite allows; 5: the numbers cannot tell, or the target went away.
    """
    from repro.nightly.command import Command, duration_s
    from repro.nightly.command import nightly as run_nightly
    from repro.nightly.plan import Target

    if target != BUNDLED and not target.startswith(("http://", "https://")):
        raise UsageError(f'--target "{target}": give {BUNDLED}, or a URL such as http://127.0.0.1:30000')
    aim = Target("" if target == BUNDLED else target, api, defect, reference)
    time_s = duration_s(time) if time else None
    command = Command(suite, runs, out, time_s, requests, seed, aim, baseline, resume, workers, ray, json)
    raise typer.Exit(run_nightly(command, _Output(highlight=False), _Output(stderr=True, highlight=False, quiet=quiet)))


@app.command(
    epilog=_examples("repro compare runs/nightly/smoke-20261123T020000Z-0 runs/nightly/smoke-20261124T020000Z-0")
)
@_told
def compare(
    before: Annotated[Path, typer.Argument(metavar="A", help="A night's folder or nightly.json, or a run's folder.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="The other one.")],
    same_within: Annotated[
        float | None, typer.Option(min=1e-9, max=1, help="Rates that differ by less are the same: 0.01.", metavar="X")
    ] = None,
    json: Json = False,
) -> None:
    """Compare two nights or runs: rates, exact test, effect with its interval, and the power there was.

    Exit codes: 0 same or better, 1 worse, 5 inconclusive.
    """
    from repro.nightly.command import compare_sides

    raise typer.Exit(compare_sides(before, after, same_within, json, _Output(highlight=False)))


@app.command(epilog=_examples("repro report runs/hicache_early_read/20261124T101500Z-7"))
@_told
def report(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, also of one that was killed.")],
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Write the report, print nothing.")] = False,
) -> None:
    """Write the HTML report of a run again and print its summary."""
    from reports.html import write_report
    from reports.summary import summarise
    from reports.terminal import print_summary
    from repro.record.view import open_run

    opened, path = open_run(folder), ""
    try:
        path = str(write_report(opened))
    finally:  # a full disk takes the page, not the summary
        if not quiet:
            print_summary(opened, summarise(opened), _Output(), report=path)


@app.command(epilog=_examples("repro serve --port 30000", "repro serve --scenario hicache_early_read"))
@_told
def serve(
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 picks a free one.", metavar="N")] = 30000,
    host: Annotated[
        str, typer.Option(help="Where to listen; the default is this machine only.", metavar="ADDRESS")
    ] = "127.0.0.1",
    config: Annotated[
        str, typer.Option(help="A bundled configuration (see `repro list`).", metavar="NAME")
    ] = "tiny-hicache",
    defect: Annotated[
        list[str] | None, typer.Option(help="Serve a stack with this defect (see `repro list`).", metavar="NAME")
    ] = None,
    scenario: Annotated[
        str | None,
        typer.Option(help="Serve a scenario's stack, with its defect and its faults.", metavar="NAME"),
    ] = None,
    seed: Seed = 0,
    threads: Threads = None,
) -> None:
    """Serve the bundled stack over HTTP (OpenAI's API and SGLang's /generate) until Ctrl-C."""
    if scenario is not None and defect:
        raise UsageError("--scenario brings its own defect; give --defect with --config")
    found = None if scenario is None else scenarios.find(scenario)
    _set_threads(threads)
    from repro.service import Service, serve_bundled, service_of

    service = (
        service_of(config, tuple(defect or ())) if found is None else Service(found.config, found.defects, found.faults)
    )

    def ready(url: str) -> None:
        errors.print(f"serving {scenario or config} at {url} (Ctrl-C ends it)", markup=False, soft_wrap=True)

    serve_bundled(service, host=host, port=port, seed=seed, on_ready=ready)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog=_examples("repro sglang -- --model-path MODEL --enable-hierarchical-cache --port 30000"),
)
@_told
def sglang(context: typer.Context) -> None:
    """Launch SGLang's server (0.5.11) with our plugin; what is behind -- is for the server.

    Its control, on a port of this machine, takes delays and defects while it runs: POST /plan with a TOML text as in a
    scenario file, GET /counts. Exit code 4: it died, or did not prove that the plugin is active.
    """
    from repro.sglang_server.command import run_sglang

    run_sglang(context.args, lambda told: errors.print(told, markup=False, soft_wrap=True))


@app.command(name="list")
@_told
def list_all() -> None:
    """List the bundled scenarios, defects and configurations."""
    from repro.fault.defects import DEFECTS
    from repro.serve.config import CONFIGS

    bundled = map(scenarios.find, scenarios.bundled_names())
    stepped = filter(None, map(experiments.find, scenarios.experiment_names()))
    listed: dict[str, list[tuple[str, str]]] = {
        "Scenarios (repro run NAME)": [(each.name, each.title) for each in bundled],
        "Experiments, in steps (repro run NAME)": [(each.name, each.title) for each in stepped],
        "Defects (--defect NAME)": [],
    }
    for defect in DEFECTS.values():
        listed["Defects (--defect NAME)"] += [(defect.name, defect.races), ("", defect.reference)]
    listed["Configurations (repro serve --config NAME)"] = [(name, config.in_words) for name, config in CONFIGS.items()]
    output = _Output(highlight=False)
    for title, rows in listed.items():
        table = Table.grid(padding=(0, 2), pad_edge=True)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for row in rows:
            table.add_row(*row)
        output.print(title, table)


@app.command(epilog=_examples("repro faults", "repro faults --json"))
@_told
def faults(
    json: Annotated[bool, typer.Option("--json", help="Print all faults as one JSON object.")] = False,
) -> None:
    """List every fault that a scenario's [[fault]] may ask for, by plane: its name, and what happens.

    Legal ones change times and orders: a correct server survives them. Corrupting ones change bytes: detectors must
    see them. `at` is the name up to its last point, `do.kind` the rest.
    """
    from repro.fault.catalogue import PLANES, catalogue

    found = catalogue()
    if json:
        _print_json({"faults": [each._asdict() for each in found]})
        return
    output = _Output(highlight=False)
    for plane, what in PLANES.items():
        table = Table.grid(padding=(0, 2), pad_edge=True)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for each in found:
            if each.plane == plane:
                table.add_row(each.name, each.what if each.legal else f"corrupting: {each.what}")
        output.print(f"{plane}: {what}", table)


def _run(
    scenario: scenarios.Scenario, options: "RunOptions", root: Path, quiet: bool, threads: int | None
) -> "Outcome":
    _set_threads(threads)
    from repro.run import run_scenario
    from repro.view import Watcher

    console = _Output(stderr=True, quiet=quiet)
    with Watcher(console, time.monotonic, simulated=not options.url) as watcher:
        return run_scenario(
            scenario,
            options,
            root=root,
            utc=datetime.now(UTC),
            clock_s=time.monotonic,
            progress=watcher.load,
            oracle_progress=watcher.oracle,
            note=watcher.note,
        )


def _finish(outcome: "Outcome", json: bool, *, report: bool = True) -> None:
    """Write the report, print the verdict, and exit with its code, whatever becomes of the printing."""
    from reports.html import write_report
    from reports.summary import summarise
    from reports.terminal import print_summary
    from repro.record.view import open_run

    opened, verdict = open_run(outcome.path), outcome.verdict
    try:
        if report:
            write_report(opened)
        else:
            verdict = verdict | {"report": ""}
    except (Exception, KeyboardInterrupt) as error:  # the run is whole and judged: the verdict stands
        verdict = verdict | {"report": ""}
        again = f"`repro report {outcome.path}` writes it again"
        errors.print(f"no report: {type(error).__name__}: {error}; {again}", style="red", markup=False, soft_wrap=True)
    try:
        if json:
            _print_json(verdict)
        else:
            print_summary(opened, summarise(opened), _Output(), report=str(verdict["report"]))
    except BrokenPipeError:
        _discard_output()
    raise typer.Exit(outcome.judgement.exit_code)


def _exit(error: ReproError, json: bool) -> typer.Exit:
    """Tell an error; return the exit to raise."""
    errors.print(f"{type(error).__name__}: {error}", style="red", markup=False, soft_wrap=True)
    if error.run_dir:
        crash = " (crash.txt says where it broke)" if (Path(error.run_dir) / "crash.txt").exists() else ""
        kept = f"what was recorded is in {error.run_dir}{crash}; `repro report {error.run_dir}` shows it"
        errors.print(kept, markup=False, soft_wrap=True)
    if json:
        told = {"verdict": WORDS[error.exit_code], "error": str(error), "run_dir": error.run_dir}
        try:
            _print_json(told)
        except BrokenPipeError:
            _discard_output()
    return typer.Exit(error.exit_code)


def _print_json(told: object) -> None:
    sys.stdout.write(msgspec.json.encode(told).decode() + "\n")
    sys.stdout.flush()


def _discard_output() -> None:
    """Let what is still to be written go nowhere: the reader has left."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _set_threads(threads: int | None) -> None:
    """Set the model's threads. Up to two give the same bits; more might not.

    One is the default: the products of a decode step are so small that a second thread costs more than it does.
    """
    import torch

    torch.set_num_threads(threads or 1)


def main() -> None:
    """Entry point of the `repro` command."""
    app()


if __name__ == "__main__":
    main()
