"""What all commands share: how they are registered, how they print results and errors, a run with its progress."""

import functools
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from repro.base.errors import HarnessError, ReproError, StoppedError
from repro.base.verdict_word import VerdictWord
from repro.cli.options import RunResults, flat

if TYPE_CHECKING:  # these bring torch and pandas with them: a usage error is printed without the wait
    from repro.run.options import RunOptions
    from repro.run.outcome import Outcome
    from repro.scenario.schema import Scenario
    from repro.search.reproduce import Recipe

EXIT_CODES = "Exit codes: " + ", ".join(f"{word.exit_code} {word.replace('_', ' ')}" for word in VerdictWord) + "."


class Output(Console):
    """A console for readers that may leave: rich itself would exit with 1, which means an anomaly here."""

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


def command(*examples: str, **settings: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command under its function's name, with examples at the end of its help.

    Whatever goes wrong in it becomes a sentence on standard error and an exit code.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        app.command(epilog="\n\n".join(("Examples:", *examples)) if examples else None, **settings)(
            _guarded(flat(function))  # a blank line between examples keeps rich from joining them
        )
        return function

    return register


def _guarded(function: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(function)
    def wrapped(**options: Any) -> None:
        json = bool(options.get("json"))
        try:
            function(**options)
        except typer.Exit:
            raise
        except ReproError as error:
            raise exit_of(error, json) from error
        except KeyboardInterrupt as error:
            raise exit_of(StoppedError("stopped by Ctrl-C before anything was recorded"), json) from error
        except BrokenPipeError as error:
            discard_output()
            raise typer.Exit(0) from error
        except OSError as error:  # standard output may be what broke: no JSON can be printed there
            failed = HarnessError(f"{error.filename or 'standard output'}: {error.strerror}")
            raise exit_of(failed, False) from error
        except Exception as error:  # Python's own exit code 1 would read as an anomaly
            say("".join(traceback.format_exception(error)))
            crash = HarnessError(f"a bug of the harness: {type(error).__name__}: {error}; the lines above say where")
            raise exit_of(crash, json) from error

    return wrapped


def say(text: str, style: str | None = None) -> None:
    """Write a line to standard error, as it is."""
    errors.print(text, style=style, markup=False, soft_wrap=True)


def sayer(quiet: bool) -> Callable[[str], None]:
    """Return what writes a line of progress to standard error, or nothing."""
    return (lambda line: None) if quiet else say


def consoles(quiet: bool) -> tuple[Output, Output]:
    """Return where results go, and where progress goes."""
    return Output(highlight=False), Output(stderr=True, highlight=False, quiet=quiet)


def recipe_with_notes(what: str, runs: Path) -> "Recipe":
    """Return how to run a token or a run folder again; warnings go to standard error."""
    from repro.search.reproduce import recipe_of

    recipe = recipe_of(what, runs)
    for warning in recipe.warnings:
        say(f"note: {warning}")
    return recipe


def run_watched(scenario: "Scenario", options: "RunOptions", results: RunResults) -> "Outcome":
    """Run a scenario with its progress on standard error."""
    set_threads(results.threads)
    from repro.cli.progress import Watcher
    from repro.run.options import Watch
    from repro.run.run import run_scenario

    console = Output(stderr=True, quiet=results.quiet)
    with Watcher(console, time.monotonic, simulated=not options.url) as watcher:
        return run_scenario(
            scenario,
            options,
            root=results.runs,
            utc=datetime.now(UTC),
            watch=Watch(time.monotonic, watcher, watcher.note),
        )


def finish(outcome: "Outcome", json: bool, *, report: bool = True) -> None:
    """Write the report, print the verdict, and exit with its code, whatever becomes of the printing."""
    from reports.run.summary import summarise
    from reports.run.terminal import print_summary
    from repro.record.view import open_run

    opened, verdict = open_run(outcome.path), outcome.verdict
    try:
        if report:
            from reports.run.html import write_report

            write_report(opened)
        else:
            verdict = msgspec.structs.replace(verdict, report="")
    except (Exception, KeyboardInterrupt) as error:  # the run is whole and judged: the verdict stands
        verdict = msgspec.structs.replace(verdict, report="")
        again = f"`repro report {outcome.path}` writes it again"
        say(f"no report: {type(error).__name__}: {error}; {again}", style="red")
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
    say(f"{type(error).__name__}: {error}", style="red")
    if error.run_dir:
        crash = " (crash.txt says where it broke)" if (Path(error.run_dir) / "crash.txt").exists() else ""
        say(f"what was recorded is in {error.run_dir}{crash}; `repro report {error.run_dir}` shows it")
    if json:
        try:
            print_json({"verdict": error.word, "error": str(error), "run_dir": error.run_dir})
        except BrokenPipeError:
            discard_output()
    return typer.Exit(error.word.exit_code)


def print_json(result: object) -> None:
    """Write one JSON object to standard output, and nothing else."""
    sys.stdout.write(msgspec.json.encode(result).decode() + "\n")
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
