"""The options of the commands: those that several share, and groups of them.

A command takes a group as one parameter; `flat` gives typer the signature that it reads, one parameter an option.
"""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import typer

from repro.base.errors import UsageError
from repro.scenario.ranges import LOAD_RANGES

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
Api = Literal["chat", "completions", "generate"]
BUNDLED = "bundled"
RUNS = Path("runs")
WORKERS = 2
MOST = {name: int(most) for name, (_, most) in LOAD_RANGES.items()}


class Options(msgspec.Struct, frozen=True):
    """A group of options: a parameter of a command, and one parameter an option for typer."""


def number(help: str, *, least: float = 1, most: float | None = None, metavar: str = "N") -> Any:
    """Return an option that takes a number within bounds."""
    return typer.Option(min=least, max=most, help=help, metavar=metavar)


def flat(command: Callable[..., Result]) -> Callable[..., Result]:
    """Return the command with the options of each group in the place of the group."""
    groups: dict[str, type[Options]] = {}
    parameters: list[inspect.Parameter] = []
    for each in inspect.signature(command).parameters.values():
        if isinstance(each.annotation, type) and issubclass(each.annotation, Options):
            groups[each.name] = each.annotation
            parameters += inspect.signature(each.annotation).parameters.values()
        else:
            parameters.append(each)

    @functools.wraps(command)
    def flattened(**options: Any) -> Result:
        made = {
            name: group(**{option: options.pop(option) for option in group.__struct_fields__})
            for name, group in groups.items()
        }
        return command(**made, **options)

    keywords = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in parameters]
    flattened.__annotations__ = {each.name: each.annotation for each in keywords}
    flattened.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
    return flattened


def url_of(target: str) -> str:
    """Return the URL of a target, "" for the bundled stack. Raises UsageError for what is neither."""
    if target == BUNDLED:
        return ""
    if not target.startswith(("http://", "https://")):
        raise UsageError(f'--target "{target}": give {BUNDLED}, or a URL such as http://127.0.0.1:30000')
    return target


class Results(Options, frozen=True):
    """What becomes of the results."""

    json: Json = False
    quiet: Quiet = False
    runs: Runs = RUNS


class RunResults(Results, frozen=True):
    """What becomes of the results of one run in this process."""

    threads: Threads = None


class CampaignResults(Results, frozen=True):
    """What becomes of the results of many runs."""

    json: Annotated[bool, typer.Option("--json", help="Print all verdicts as one JSON object.")] = False


class CalibrationResults(Options, frozen=True):
    """What is printed of a calibration."""

    json: Annotated[bool, typer.Option("--json", help="Print what came of it as one JSON object.")] = False
    quiet: Quiet = False


class LeftOut(Options, frozen=True):
    """Which parts of a scenario are left out."""

    control: Annotated[bool, typer.Option("--control", help="The same load and faults, no defect.")] = False
    no_faults: Annotated[bool, typer.Option("--no-faults", help="The defect alone, nothing perturbed.")] = False


class ExperimentOptions(Options, frozen=True):
    """What an experiment takes and a scenario does not."""

    workers: Annotated[int | None, number(f"Of an experiment: runs at once, {WORKERS} if not given.")] = None
    seeds: Annotated[int | None, number("Of an experiment: at most so many seeds a part.")] = None
    resume: Annotated[
        Path | None, typer.Option(help="Of an experiment: continue the one in this folder.", metavar="FOLDER")
    ] = None


class Server(Options, frozen=True):
    """What a replay is sent to."""

    target: Annotated[str, typer.Option(help="bundled, or the URL of an OpenAI-compatible server.")] = BUNDLED
    api: Annotated[
        Api, typer.Option(help="Of the server; SGLang tells the counts of its drafts on /generate only.")
    ] = "chat"


class ReplayLoad(Options, frozen=True):
    """How traces are replayed."""

    concurrency: Annotated[int, number("Sessions under way at once.", most=MOST["concurrency"])] = 16
    scale_tokens: Annotated[
        float, number("Shrink lengths, keep prefixes: 0.05 is a twentieth.", least=1e-4, most=1, metavar="X")
    ] = 1.0
    time_scale: Annotated[
        float, number("Of think times and arrivals; 0: no waiting.", least=0, most=MOST["time_scale"], metavar="X")
    ] = 1.0
    sessions: Annotated[int, number("At most so many sessions.", most=MOST["sessions"])] = MOST["sessions"]
    answer_tokens: Annotated[int, number("The longest answer asked for.", most=MOST["answer_tokens_max"])] = 128
    history: Annotated[Literal["recorded", "generated"], typer.Option(help="Whose answers later turns build on.")] = (
        "recorded"
    )
    arrivals: Annotated[
        Literal["closed", "trace"], typer.Option(help="closed: the next session starts when one ends.")
    ] = "closed"
    defect: Annotated[
        list[str] | None, typer.Option(help="Give the bundled stack this defect (see `repro list`).", metavar="NAME")
    ] = None
    on_anomaly: Annotated[
        Literal["report", "abort-retry"],
        typer.Option(help="abort-retry: give an answer up that is convicted in its stream, and ask again."),
    ] = "report"
    anomaly_retries: Annotated[int, number("At most so often a turn.", least=0, most=MOST["anomaly_retries_max"])] = 1


class Detection(Options, frozen=True):
    """How closely the answers of a replay are judged, and what the record holds of them."""

    calibration: Annotated[
        Path | None,
        typer.Option(help="Of the server, from `repro calibrate`: its answers are checked.", metavar="FILE"),
    ] = None
    false_alarm_rate: Annotated[
        float, number("Of an answer that is checked, for each oracle.", least=1e-9, most=0.5, metavar="X")
    ] = 0.001
    oracle_tokens: Annotated[int, number("That checking may take, prompts included.")] = 10_000_000
    redact: Annotated[bool, typer.Option("--redact", help="No text of a request or an answer in the record.")] = False
    nonces: Annotated[
        bool, typer.Option("--nonces", help="Plant a nonce in each session, by which a leak into another is known.")
    ] = False
    acceptance: Annotated[
        list[str] | None,
        typer.Option(
            help="Ask for the acceptance detector: length_min=1.4, rate_max=0.96, tokens_min=128, profile=FILE, "
            "false_alarm_rate=0.001, arl_tokens=1e7.",
            metavar="KEY=VALUE",
        ),
    ] = None


class GentleLoad(Options, frozen=True):
    """The load that a calibration learns from."""

    answers: Annotated[int, number("999 can vouch for a false-alarm rate of 0.001.", most=1_000_000)] = 1000
    concurrency: Annotated[int, number("Sessions under way at once; be gentle.", most=MOST["concurrency"])] = 4
    prompt_tokens: Annotated[int, number("Of synthesised sessions.", least=400, most=MOST["prompt_tokens"])] = 2048
    answer_tokens: Annotated[int, number("The longest answer asked for.", most=MOST["answer_tokens_max"])] = 128
    tokens: Annotated[int, typer.Option(min=1, help="That checking may take, prompts included.", metavar="N")] = (
        100_000_000
    )


class HuntGoal(Options, frozen=True):
    """What to hunt for, and when to stop."""

    strategy: Annotated[
        Literal["random", "pct2", "pct3", "pct5", "pos", "surw", "portfolio"],
        typer.Option(help="How schedules are chosen; portfolio learns which of the others pay, and mutates."),
    ] = "portfolio"
    budget: Annotated[int, number("At most so many schedules.", most=1_000_000)] = 200
    time_s: Annotated[float | None, typer.Option("--time", min=1, help="At most so long.", metavar="SECONDS")] = None
    every: Annotated[bool, typer.Option("--all", help="Go on after the first finding; collect all causes.")] = False
    layer: Annotated[
        list[str] | None,
        typer.Option(help="What counts: ordering, canary, divergence, text; may be repeated.", metavar="LAYER"),
    ] = None


class HuntPlay(Options, frozen=True):
    """How a hunt plays each schedule."""

    full: Annotated[bool, typer.Option("--full", help="The scenario's whole load, not a light one.")] = False
    numerics: Annotated[
        Literal["stamps", "tensors"], typer.Option(help="stamps: orders and owners only, many times faster.")
    ] = "stamps"
    workers: Annotated[int, number("Schedules at once, one thread each.")] = WORKERS
    corpus: Annotated[
        Path | None, typer.Option(help="Go on from what an earlier hunt has learnt.", metavar="FOLDER")
    ] = None


class NightTarget(Options, frozen=True):
    """What a night runs against."""

    defect: Annotated[str, typer.Option(help="Give the bundled stack this defect.", metavar="NAME")] = ""
    target: Annotated[str, typer.Option(help="bundled, or the URL of an OpenAI-compatible server.")] = BUNDLED
    api: Annotated[Api, typer.Option(help="Of the server.")] = "chat"
    reference: Annotated[
        str, typer.Option(help="Asked the same, for the throughput gate: a server's URL, or bundled.", metavar="URL")
    ] = ""


class NightRuns(Options, frozen=True):
    """Where and how a night runs."""

    baseline: Annotated[str, typer.Option(help="The night to compare with, or latest.", metavar="RUN")] = ""
    out: Annotated[Path | None, typer.Option(help="The night's folder; past nights lie beside it.")] = None
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the night in --out.")] = False
    workers: Annotated[int, number("Runs at once.")] = WORKERS
    ray: Annotated[
        str | None, typer.Option(help="Spread the runs over this Ray cluster (extra: cluster).", metavar="ADDRESS")
    ] = None
