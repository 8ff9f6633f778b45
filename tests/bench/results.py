"""How a bench shows its tables, and with --record writes them into RESULTS.md: nobody types a table by hand.

A bench calls `add_record(parser)` and, once, `show(given, table, ...)`. RESULTS.md has a block for every bench, between
`<!-- NAME -->` and `<!-- /NAME -->`; the command, date, commit, machine and time taken stand above the tables.
"""

import argparse
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).with_name("RESULTS.md")
RECORD = "--record"
WIDTH = 200
STARTED_S = time.monotonic()
MEASURED = ("repro", "detectors", "reports", "scenarios", "tests", "pyproject.toml", f":!tests/bench/{RESULTS.name}")


def add_record(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(RECORD, action="store_true", help=f"write the tables into {RESULTS.name} too")


def show(given: argparse.Namespace, *parts: Table | str) -> None:
    """Print tables and lines; with --record write them into the block of the bench that runs."""
    console = Console(width=WIDTH)
    for part in parts:
        console.print(part, markup=False, highlight=False)
    if given.record:
        record(bench_name(), command_line(), *parts)


def bench_name() -> str:
    return Path(sys.argv[0]).stem


def command_line() -> str:
    """Return the command that a reader types to get the same tables."""
    return shlex.join(
        ["python", "-m", f"tests.bench.{bench_name()}", *(word for word in sys.argv[1:] if word != RECORD)]
    )


def record(name: str, command: str, *parts: Table | str, results: Path = RESULTS) -> None:
    """Replace the block of a bench in the results' page."""
    text = results.read_text()
    block = re.compile(rf"(?<=<!-- {re.escape(name)} -->\n).*?(?=<!-- /{re.escape(name)} -->\n)", re.DOTALL)
    if len(block.findall(text)) != 1:
        raise SystemExit(f"{results}: expected one block from <!-- {name} --> to <!-- /{name} -->")
    shown = "\n\n".join([f"`{command}`\\\n{circumstances()}", *map(markdown, parts)])
    results.write_text(block.sub(lambda _: f"{shown}\n", text))


def circumstances() -> str:
    """Return date, commit, machine and time taken in one line."""
    used = os.times()
    processor_s = used.user + used.system + used.children_user + used.children_system
    took = f"{time.monotonic() - STARTED_S:,.0f} s, {processor_s:,.0f} s of processor time"
    return f"{datetime.now(UTC):%Y-%m-%d}, commit {commit()}, {machine()}; took {took}."


def commit() -> str:
    """Return the commit that is checked out, and whether what is measured differs from it."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=RESULTS.parents[2], capture_output=True, text=True, check=True
        ).stdout.strip()

    changed = git("status", "--porcelain", "--", *MEASURED)
    return git("rev-parse", "--short", "HEAD") + (" with changes" if changed else "")


def machine() -> str:
    """Return the processor's model and how many cores this process may use."""
    information = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.+)", information.read_text()) if information.exists() else []
    return (
        f"{models[0] if models else platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores"
    )


def markdown(part: Table | str) -> str:
    """Return a table, or a line, as Markdown."""
    if isinstance(part, str):
        return part
    columns = [[str(column.header), *map(str, column.cells)] for column in part.columns]
    heads, *rows = zip(*columns, strict=True)
    rules = tuple("---:" if column.justify == "right" else "---" for column in part.columns)
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (heads, rules, *rows)]
    return "\n".join([*([f"**{part.title}**", ""] if part.title else []), *lines])
