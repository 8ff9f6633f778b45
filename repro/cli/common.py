"""What all commands share: how they tell results and errors, their common options, and a run with its progress."""

import functools
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ParamSpec, TypeVar

import msgspec
import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

import repro.scenario.schema as scenarios
from repro.base.errors import HarnessError, ReproError, StoppedError
from repro.base.verdict_word import VerdictWord

if TYPE_CHECKING:  # these bring torch and pandas with them: a usage error is told without the wait
    from repro.run.options import RunOptions
    from repro.run.run import Outcome

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
EXIT_CODES = "Exit codes: " + ", ".join(f"{word.exit_code} {word.replace('_', ' ')}" for word in VerdictWord) + "."


class Output(Console):
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
errors = Output(stderr=True, highlight=False)


def examples(*lines: str) -> str:
    """Return the end of a command's help; a blank line keeps rich from joining the lines."""
    return "\n\n".join(("Examples:", *lines))


def guarded(command: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Turn whatever goes wrong into a sentence on standard error and an exit code."""

    @functools.wraps(command)
    def wrapped(*args: Parameters.args, **keywords: Parameters.kwargs) -> Result:
        try:
            return command(*args, **keywords)
        except typer.Exit:
            raise
        except ReproError as error:
            raise exit_of(error, bool(keywords.get("json"))) from error
        except KeyboardInterrupt as error:
            stopped = StoppedError("stopped by Ctrl-C before anything was recorded")
            raise exit_of(stopped, bool(keywords.get("json"))) from error
        except BrokenPipeError as error:
            discard_output()
            raise typer.Exit(0) from error
        except OSError as error:
            failed = HarnessError(f"{error.filename or 'standard output'}: {error.strerror}")
            raise exit_of(failed, False) from error
        except Exception as error:  # Python's own exit code 1 would read as an anomaly
            errors.print("".join(traceback.format_exception(error)), markup=False, soft_wrap=True)
            crash = HarnessError(f"a bug of the harness: {type(error).__name__}: {error}; the lines above say where")
            raise exit_of(crash, bool(keywords.get("json"))) from error

    return wrapped


def run_watched(
    scenario: scenarios.Scenario, options: "RunOptions", root: Path, quiet: bool, threads: int | None
) -> "Outcome":
    """Run a scenario with its progress on standard error."""
    set_threads(threads)
    from repro.cli.progress import Watcher
    from repro.run.options import Watch
    from repro.run.run import run_scenario

    console = Output(stderr=True, quiet=quiet)
    with Watcher(console, time.monotonic, simulated=not options.url) as watcher:
        return run_scenario(
            scenario,
            options,
            root=root,
            utc=datetime.now(UTC),
            watch=Watch(time.monotonic, watcher, watcher.note),
        )


def finish(outcome: "Outcome", json: bool, *, report: bool = True) -> None:
    """Write the report, print the verdict, and exit with its code, whatever becomes of the printing."""
    from reports.run.html import write_report
    from reports.run.summary import summarise
    from reports.run.terminal import print_summary
    from repro.record.view import open_run

    opened, verdict = open_run(outcome.path), outcome.verdict
    try:
        if report:
            write_report(opened)
        else:
            verdict = msgspec.structs.replace(verdict, report="")
    except (Exception, KeyboardInterrupt) as error:  # the run is whole and judged: the verdict stands
        verdict = msgspec.structs.replace(verdict, report="")
        again = f"`repro report {outcome.path}` writes it again"
        errors.print(f"no report: {type(error).__name__}: {error}; {again}", style="red", markup=False, soft_wrap=True)
    try:
        if json:
            print_json(verdict)
        else:
            print_summary(opened, summarise(opened), Output(), report=verdict.report)
    except BrokenPipeError:
        discard_output()
    raise typer.Exit(outcome.verdict.word.exit_code)


def exit_of(error: ReproError, json: bool) -> typer.Exit:
    """Tell an error; return the exit to raise."""
    errors.print(f"{type(error).__name__}: {error}", style="red", markup=False, soft_wrap=True)
    if error.run_dir:
        crash = " (crash.txt says where it broke)" if (Path(error.run_dir) / "crash.txt").exists() else ""
        kept = f"what was recorded is in {error.run_dir}{crash}; `repro report {error.run_dir}` shows it"
        errors.print(kept, markup=False, soft_wrap=True)
    if json:
        told = {"verdict": error.word, "error": str(error), "run_dir": error.run_dir}
        try:
            print_json(told)
        except BrokenPipeError:
            discard_output()
    return typer.Exit(error.word.exit_code)


def print_json(told: object) -> None:
    """Write one JSON object to standard output, and nothing else."""
    sys.stdout.write(msgspec.json.encode(told).decode() + "\n")
    sys.stdout.flush()


@contextmanager
def live_line(quiet: bool) -> Iterator[Callable[[str], None]]:
    """Yield a function that shows a line on standard error in place of the one before."""
    with Live(console=Output(stderr=True, highlight=False, quiet=quiet), refresh_per_second=4, transient=True) as live:
        yield lambda line: live.update(Text(line))


def discard_output() -> None:
    """Let what is still to be written go nowhere: the reader has left."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def set_threads(threads: int | None) -> None:
    """Set the model's threads. Up to two give the same bits; more might not.

    One is the default: the products of a decode step are so small that a second thread costs more than it does.
    """
    import torch

    torch.set_num_threads(threads or 1)
