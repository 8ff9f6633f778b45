"""Hunts and shrunk findings as text in a terminal."""

from rich.console import Console

from repro.search.hunt import ERRORS_MAX, HuntTally
from repro.search.shrink.shrink import Result as Shrunk

HEADLINES = {
    "anomaly": "FOUND",
    "clean": "NOTHING FOUND",
    "vacuous": "VACUOUS: no schedule did what the scenario is about; --full plays its whole load",
    "failed": "FAILED",
    "inconclusive": "INCONCLUSIVE: nothing was proved, but not every schedule was judged",
}
PROVED = {
    True: "",
    False: "  A NEW PROCESS CAME TO ANOTHER RUN: a bug of the harness",
    None: "  NOT PROVED: the hunt was stopped before a new process could play it",
}


def progress_line(tally: HuntTally, budget: int) -> str:
    """Return how a hunt stands, in a line."""
    found = ", ".join(f"{layer} {count}" for layer, count in tally.by_layer.items()) or "nothing found"
    rate = tally.runs / tally.seconds if tally.seconds else 0.0
    return f"{tally.runs} of {budget} schedules, {rate:.2f}/s, {tally.orders} orders, {found}"


def print_hunt(tally: HuntTally, console: Console) -> None:
    """Print what a hunt came to, and each finding with its token."""
    verdict = tally.verdict
    rate = f"{tally.runs} schedules in {tally.seconds:.1f} s, {tally.orders} orders of accesses to a page"
    lines = [f"{HEADLINES[verdict]}  {rate}"]
    for each in tally.caught:
        lines += ["", f"{each.signature}{PROVED[each.proved]}", f"  {each.claim}"]
        lines += [f"  schedule {each.schedule_number}, {each.strategy}: {each.run_dir}"]
        lines += [f"  repro reproduce {each.token}"]
    lines += [f"a schedule died: {error}" for error in tally.errors[:ERRORS_MAX]]
    if tally.unknown:
        lines.append(f"{tally.unknown} of them failed or were inconclusive: they prove nothing")
    if tally.interrupted:
        lines.append("stopped before the budget was spent")
    if tally.vacuous and verdict != "vacuous":
        lines.append(f"{tally.vacuous} of them were vacuous: a fault or the load had no effect")
    _print([*lines, f"corpus: {tally.corpus}"], console)


def print_shrunk(result: Shrunk, console: Console) -> None:
    """Print how small a finding became, what it is, and where its files are."""
    size = f"{result.requests} requests, {result.deviations} deviations from the natural order"
    lines = [f"SHRUNK  {size}, after {result.replays} replays", result.signature, "", result.explanation, ""]
    if not result.control_silent:
        lines.append("NOT SILENT with the guard in place: this is no finding of the scenario's defect")
    if not result.proved:
        lines.append("A NEW PROCESS CAME TO ANOTHER RUN: a bug of the harness")
    lines += [f"replay: repro reproduce {result.token}", f"scenario: {result.scenario}", f"test: {result.pytest}"]
    _print([*lines, f"run: {result.run_dir}"], console)


def _print(lines: list[str], console: Console) -> None:
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
