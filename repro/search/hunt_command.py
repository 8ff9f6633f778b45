"""`repro hunt SCENARIO`: hunts, shows how it stands, and tells what was found with a token each."""

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from rich.console import Console
from rich.live import Live
from rich.text import Text

from repro.base.errors import UsageError
from repro.record.folder import STAMP
from repro.run.judge.verdict import EXIT_CODES, Word
from repro.run.run import RunOptions
from repro.scenario.overrides import light_load, overridden
from repro.scenario.schema import Scenario
from repro.schedule.overrides import Overrides
from repro.search.hunt import Caught, Hunt, Quarry, Tally
from repro.search.portfolio import Corpus, Searcher

CORPUS_FILE = "corpus.json"

SAID: dict[Word, str] = {
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


class Command(msgspec.Struct, frozen=True):
    """What the command line asks for."""

    quarry: Quarry
    root: Path
    seed: int
    workers: int
    control: bool
    no_faults: bool
    full: bool  # the scenario's whole load
    stamps: bool
    corpus: Path | None  # of an earlier hunt, to go on from
    json: bool


class Result(msgspec.Struct, frozen=True):
    """What `--json` prints."""

    verdict: Word
    runs: int
    findings: list[Caught]
    token: str  # of the first finding
    orders: int
    vacuous: int
    unknown: int
    died: int
    errors: list[str]
    seconds: float
    corpus: str
    exit_code: int


def run_hunt(
    scenario: Scenario, command: Command, console: Console, errors: Console, clock_s: Callable[[], float]
) -> int:
    """Hunt and return the exit code; the corpus is kept in a folder beside the scenario's runs."""
    overrides = Overrides(stamps=command.stamps)
    if not command.full:
        overrides = light_load(scenario, stamps=command.stamps, seed=command.seed)
    overridden(scenario, overrides)  # what makes no sense is said before processes start
    options = RunOptions(command.seed, command.control, command.no_faults, overrides=overrides)
    before = _read_corpus(command.corpus)
    searcher = Searcher(command.quarry.search, command.seed, before)
    folder = command.root / scenario.name / f"{datetime.now(UTC).strftime(STAMP)}-hunt"
    folder.mkdir(parents=True, exist_ok=True)
    with Live(console=errors, refresh_per_second=4, transient=True) as live:
        hunt = Hunt(
            scenario, options, command.quarry, searcher, root=command.root, workers=command.workers, clock_s=clock_s,
            told=lambda tally: live.update(Text(_line(tally, command.quarry))),
        )  # fmt: skip
        tally = hunt.run()
    corpus = folder / CORPUS_FILE
    corpus.write_bytes(msgspec.json.format(msgspec.json.encode(searcher.left()), indent=1))
    result = _result(tally, str(corpus))
    if command.json:
        sys.stdout.write(msgspec.json.encode(result).decode() + "\n")
        sys.stdout.flush()
    else:
        _print(result, tally, console)
    return result.exit_code


def _read_corpus(path: Path | None) -> Corpus:
    if path is None:
        return Corpus()
    file = path / CORPUS_FILE if path.is_dir() else path
    try:
        return msgspec.json.decode(file.read_bytes(), type=Corpus)
    except (OSError, msgspec.DecodeError) as error:
        raise UsageError(f"{file}: no corpus of a hunt ({error}); give the folder that a hunt has named") from error


def _line(tally: Tally, quarry: Quarry) -> str:
    found = ", ".join(f"{layer} {count}" for layer, count in _by_layer(tally.caught).items()) or "nothing found"
    each_s = tally.runs / tally.seconds if tally.seconds else 0.0
    return f"{tally.runs} of {quarry.budget} schedules, {each_s:.2f}/s, {tally.orders} orders, {found}"


def _by_layer(caught: list[Caught]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for each in caught:
        counts[each.layer] = counts.get(each.layer, 0) + 1
    return counts


def _result(tally: Tally, corpus: str) -> Result:
    word = _verdict(tally)
    token = tally.caught[0].token if tally.caught else ""
    return Result(
        word, tally.runs, tally.caught, token, tally.orders, tally.vacuous, tally.unknown, tally.died,
        tally.errors[:10], round(tally.seconds, 3), corpus, EXIT_CODES[word],
    )  # fmt: skip


def _verdict(tally: Tally) -> Word:
    if any(each.proved is False for each in tally.caught) or (tally.died and tally.died == tally.runs):
        return "failed"
    if any(each.proved for each in tally.caught):
        return "anomaly"
    if tally.caught or tally.interrupted or not tally.runs:
        return "inconclusive"
    if tally.vacuous == tally.runs:
        return "vacuous"
    if tally.unknown:
        return "inconclusive"
    return "clean"


def _print(result: Result, tally: Tally, console: Console) -> None:
    rate = f"{result.runs} schedules in {result.seconds:.1f} s, {result.orders} orders of accesses to a page"
    console.print(f"{SAID[result.verdict]}  {rate}", markup=False, soft_wrap=True)
    for each in result.findings:
        console.print(f"\n{each.signature}{PROVED[each.proved]}", markup=False, soft_wrap=True)
        console.print(f"  {each.claim}", markup=False, soft_wrap=True)
        console.print(
            f"  schedule {each.schedule_number}, {each.strategy}: {each.run_dir}", markup=False, soft_wrap=True
        )
        console.print(f"  repro reproduce {each.token}", markup=False, soft_wrap=True)
    for error in result.errors:
        console.print(f"a schedule died: {error}", markup=False, soft_wrap=True)
    if tally.unknown:
        console.print(f"{tally.unknown} of them failed or were inconclusive: they prove nothing", markup=False)
    if tally.interrupted:
        console.print("stopped before the budget was spent", markup=False)
    if tally.vacuous and result.verdict != "vacuous":
        console.print(f"{tally.vacuous} of them were vacuous: a fault or the load had no effect", markup=False)
    console.print(f"corpus: {result.corpus}", markup=False, soft_wrap=True)
