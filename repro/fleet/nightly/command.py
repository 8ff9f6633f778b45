"""`repro nightly` and `repro compare`: from the command line's words to the exit code."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from reports.night.night import Comparison, Night
from reports.night.page import ANSWERS
from reports.rates import interval_text, share_text
from repro.base.errors import UsageError
from repro.fleet.nightly.compare import SAME_WITHIN, compare, power_text, read_side
from repro.fleet.nightly.execute import runs_on
from repro.fleet.nightly.history import baseline_of, history_of
from repro.fleet.nightly.job import JobResult
from repro.fleet.nightly.journal import Journal
from repro.fleet.nightly.night import RUNS, Runs, night_id, run_night
from repro.fleet.nightly.plan import Plan, Target
from repro.fleet.nightly.suite import find_suite
from repro.pool.local import LocalPool
from repro.record.folder import STAMP

COMPARED = {"worse": 1, "same": 0, "better": 0, "inconclusive": 5}


class Command(msgspec.Struct, frozen=True):
    """What the command line asks for."""

    suite: str
    root: Path
    out: Path | None = None
    time_s: float | None = None
    requests: int | None = None
    seed: int = 0
    target: Target = Target()
    baseline: str = ""
    resume: bool = False
    workers: int = 2
    ray: str | None = None
    json: bool = False


def nightly(command: Command, console: Console, errors: Console) -> int:
    """Run a night, print what it came to, and return the exit code."""
    command.target.check()
    suite = find_suite(command.suite).with_budget(time_s=command.time_s, requests=command.requests)
    if command.resume and command.out is None:
        raise UsageError("--resume goes on with the night in a folder; say which: --out FOLDER")
    utc = datetime.now(UTC).strftime(STAMP)
    folder = (command.out or command.root / "nightly" / f"{suite.name}-{utc}-{command.seed}").resolve()
    id_ = night_id(suite, command.target, command.seed, command.baseline, utc)
    if command.baseline:  # refused before there is a journal that names it
        baseline_of(command.baseline, history_of(folder, id_), id_)
    journal = Journal.resume(folder, id_) if command.resume else Journal.create(folder, id_)
    plan = Plan(suite, command.target, command.seed)
    told = _progress(plan, journal, errors)
    with _runs(command, folder / RUNS) as runs:
        night = run_night(plan, journal, runs, folder=folder, clock_s=time.monotonic, done=told)
    journal.close()
    if command.json:
        sys.stdout.write(msgspec.json.encode(night).decode() + "\n")
        sys.stdout.flush()
    else:
        _print(night, console)
    if night.missing:
        _say(errors, f"{night.missing} runs are missing; the same command with --out {folder} --resume goes on")
    return night.exit_code


def compare_sides(before: Path, after: Path, same_within: float | None, json: bool, console: Console) -> int:
    """Compare two nights or runs, print what differs, and return 1 for worse, 0 for same or better, 5 for neither."""
    told = compare(read_side(before), read_side(after), same_within=same_within or SAME_WITHIN)
    if json:
        sys.stdout.write(msgspec.json.encode(told).decode() + "\n")
        sys.stdout.flush()
    else:
        _print_comparison(told, console)
    return COMPARED[told.answer]


def duration_s(text: str) -> float:
    """Return the seconds of a time such as 2h, 30m, 90s or 90. Raises UsageError for anything else."""
    number, unit = (text[:-1], text[-1]) if text and text[-1] in UNITS_S else (text, "s")
    try:
        seconds = float(number) * UNITS_S[unit]
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= TIME_S_MAX:
        raise UsageError(f"--time {text}: give a time from 1s to 168h, such as 2h, 30m or 90s")
    return seconds


UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0}
TIME_S_MAX = 168 * 3600.0


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, soft_wrap=True)


@contextmanager
def _runs(command: Command, folder: Path) -> Iterator[Runs]:
    """Yield what makes the night's runs, in processes of this machine or on a cluster."""
    if command.ray is None:
        with LocalPool(command.workers) as local:
            yield partial(runs_on, local, folder)
    else:
        from repro.fleet.nightly.remote import runs_on_cluster
        from repro.pool.cluster import RayPool

        with RayPool(command.ray, command.workers) as cluster:
            yield partial(runs_on_cluster, cluster, folder)


def _progress(plan: Plan, journal: Journal, errors: Console) -> Callable[[JobResult], None]:
    own = sum(case.seeds for case, _ in plan.rows)
    before = len(journal.results)
    if before:
        _say(errors, f"{before} runs of an earlier start are kept")

    def told(result: JobResult) -> None:
        number = len(journal.results)
        of = f" of {own}" if not plan.open_ended else ""
        words = f"{result.case}  {result.role}  seed {result.seed}  {result.verdict}"
        _say(errors, f"{number}{of}  {result.at_s:,.0f} s  {words}")

    return told


def _print(night: Night, console: Console) -> None:
    _say(console, f"{night.verdict.upper()}  nightly {night.suite}, exit {night.exit_code}")
    for why in night.why:
        _say(console, f"  {why}")
    table = Table("case", "ok", "came to", "wrong requests (95 %)")
    for row in night.cases:
        rate = f"{share_text(row.rate.share)} ({interval_text(row.rate.session_low, row.rate.session_high)})"
        table.add_row(row.name, ANSWERS[row.met], row.told, f"{row.rate.count:,} of {row.rate.of:,}: {rate}")
    console.print(table)
    for gate in night.gates:
        _say(console, f"gate {gate.name}: {gate.value}; {gate.limit}: {ANSWERS[gate.met]}")
    for finding in night.findings:
        _say(console, f"{'new  ' if finding.new else ''}{finding.runs} runs  {finding.signature}")
        _say(console, f"  {finding.replay}")
    if night.comparison is not None:
        _print_comparison(night.comparison, console)
    _say(console, night.scaling)
    gone = f"{night.pruned.runs} clean or vacuous runs, {night.pruned.logs} event logs"
    _say(console, f"taken off the disk: {gone}, {night.pruned.bytes / 1e6:,.0f} MB")
    _say(console, f"page: {night.folder}/index.html")


def _print_comparison(told: Comparison, console: Console) -> None:
    _say(console, f"{told.answer.upper()}  {told.told}")
    for name, rate in ((told.before, told.before_rate), (told.after, told.after_rate)):
        interval = interval_text(rate.session_low, rate.session_high)
        _say(
            console,
            f"  {name}: {rate.count:,} of {rate.of:,} requests wrong, {share_text(rate.share)} ({interval}); "
            f"{rate.sessions_hit:,} of {rate.sessions:,} sessions hit",
        )
    _say(
        console,
        f"  effect {told.effect:+.4%} (95 % {told.effect_low:+.4%} to {told.effect_high:+.4%}); "
        f"{told.test}'s exact test over sessions: p = {told.p_value:.3g}",
    )
    _say(console, f"  {power_text(told)}")
    for words, signatures in (("new", told.new_signatures), ("gone", told.gone_signatures)):
        for signature in signatures:
            _say(console, f"  {words}: {signature}")
