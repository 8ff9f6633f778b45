"""Commands that look for races, make them small, and examine the stack."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
import typer

from repro.base.errors import UsageError
from repro.cli.common import Output, command, consoles, live_line, print_json, recipe_with_notes, say
from repro.cli.options import WORKERS, HuntGoal, HuntPlay, Json, LeftOut, Quiet, Results, Seed, number

if TYPE_CHECKING:
    from repro.tools.detect_events import Detected
    from repro.tools.detect_texts import DetectedAnswers

FINDINGS_SHOWN = 20  # `repro detect` prints so many
HUNTED = ("ordering", "canary", "divergence", "text")  # layers that may count as found


@command("repro hunt sched_double_free", "repro hunt my_race.toml --all --time 600", "repro hunt X --control")
def hunt(
    scenario: Annotated[str, typer.Argument(help="A bundled scenario or a .toml file.")],
    *,
    goal: HuntGoal,
    play: HuntPlay,
    seed: Seed = 0,
    left_out: LeftOut,
    results: Results,
) -> None:
    """Search the schedules of a scenario for races, with a light load; each finding is replayed before it is told.

    Exit codes: 1 found, 0 nothing found within the budget, 3 no schedule did what the scenario is about, 4 failed,
    5 nothing proved, but some schedules could not be judged, or Ctrl-C came first.
    """
    from repro.scenario.schema import find

    hunted = find(scenario)
    layers = tuple(goal.layer or HUNTED)
    for each in layers:
        if each not in HUNTED:
            raise UsageError(f'--layer "{each}": give one of {", ".join(HUNTED)}')
    from repro.run.options import RunOptions
    from repro.search.console import print_hunt, progress_line
    from repro.search.hunt import HuntPlan, read_corpus
    from repro.search.hunt import hunt as run_hunt

    plan = msgspec.convert(  # converted, because the layers are plain text to the type checker
        {
            "search": goal.strategy, "budget": goal.budget, "time_s": goal.time_s, "layers": layers,
            "everything": goal.every, "full": play.full, "stamps": play.numerics == "stamps",
        },
        HuntPlan,
    )  # fmt: skip
    options = RunOptions(seed, left_out.control, left_out.no_faults)
    with live_line(results.quiet) as show:
        tally = run_hunt(
            hunted, options, plan, read_corpus(play.corpus), root=results.runs, workers=play.workers,
            clock_s=time.monotonic, on_progress=lambda tally: show(progress_line(tally, goal.budget)),
        )  # fmt: skip
    if results.json:
        print_json(tally.as_json)
    else:
        print_hunt(tally, Output(highlight=False))
    raise typer.Exit(tally.verdict.exit_code)


@command("repro shrink AwBzIKh1tn-w6nJTBdNnJS7b79yAAOANPw...", "repro shrink runs/my_race/20261124T101500Z-7")
def shrink(
    what: Annotated[str, typer.Argument(metavar="TOKEN|RUN", help="A token, or the folder of a run.")],
    *,
    signature: Annotated[
        str,
        typer.Option(
            help="Keep the finding with this in its cause; if not given, what the scenario expects.", metavar="TEXT"
        ),
    ] = "",
    budget: Annotated[int, number("At most so many replays.", least=2, most=100_000)] = 400,
    workers: Annotated[int, number("Replays at once, one thread each.")] = WORKERS,
    out: Annotated[Path, typer.Option(help="Where the scenario and the test go.", metavar="FOLDER")] = Path("shrunk"),
    results: Results,
) -> None:
    """Make a finding small: less load, fewer faults, fewer deviations of the schedule, and the same cause.

    Writes a scenario, and a test that fails with the defect and passes with the guard. Exit codes: 1 shrunk, 4 the
    result is no finding with the guard in place, or not the same run in a new process.
    """
    from repro.search.console import print_shrunk
    from repro.search.shrink.shrink import Shrinking
    from repro.search.shrink.shrink import shrink as make_small

    recipe = recipe_with_notes(what, results.runs)
    shrinking = Shrinking(signature=signature, budget=budget, workers=workers, root=results.runs, out=out)
    with live_line(results.quiet) as show:
        result = make_small(recipe.scenario, recipe.options, shrinking, show)
    if results.json:
        print_json(result)
    else:
        print_shrunk(result, Output(highlight=False))
    raise typer.Exit(result.verdict.exit_code)


@command("repro detect answers.jsonl", "repro detect output.jsonl input.jsonl --json", "repro detect --events t")
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
    from repro.tools.detect_events import detect as judge_events
    from repro.tools.detect_texts import detect_answers

    judged = judge_events(events) if events is not None else detect_answers(files or [], redact=redact)
    if json:
        print_json(judged)
    else:
        _print_judged(judged, Output(highlight=False))
    raise typer.Exit(judged.verdict.exit_code)


def _print_judged(judged: "Detected | DetectedAnswers", output: Output) -> None:
    """Print what was found in events or answers."""
    from detectors.evidence import PagePair
    from repro.tools.detect_events import Detected

    if isinstance(judged, Detected):
        output.print(f"{judged.verdict.upper()}  {judged.events:,} events", markup=False)
        for finding in judged.findings:
            output.print(f"{finding.count} x  {finding.claim}", markup=False, soft_wrap=True)
            if isinstance(finding.evidence, PagePair):
                output.print(f"  missing edge: {finding.evidence.missing_edge}", markup=False, soft_wrap=True)
        return
    count = f"{judged.answers:,} answers, {judged.with_prompt:,} with their prompt; {judged.unanswered:,} unanswered"
    output.print(f"{judged.verdict.upper()}  {count}", markup=False, soft_wrap=True)
    for name, convicted in judged.detectors.items():
        output.print(f"{convicted:>6} x  {name}", markup=False)
    for each in judged.findings[:FINDINGS_SHOWN]:
        output.print(f"{each.where} {each.id}: {each.finding.claim}", markup=False, soft_wrap=True)
    if len(judged.findings) > FINDINGS_SHOWN:
        output.print(f"and more; --json shows {len(judged.findings):,}", markup=False)


@command("repro mutate", "repro mutate generic_pd --seeds 5 --json")
def mutate(
    workloads: Annotated[
        list[str] | None, typer.Argument(help="Scenarios without a defect; the seven generic ones if none.")
    ] = None,
    seeds: Annotated[int, number("Seeds of each workload, from 0 on.")] = 2,
    workers: Annotated[int, number("Mutants at once, one thread each.")] = WORKERS,
    json: Annotated[bool, typer.Option("--json", help="Print all mutants as one JSON object.")] = False,
    quiet: Quiet = False,
) -> None:
    """Take every wait, record, acknowledgement, pin and guard of the stack away, one at a time: who notices?

    Exit codes: 0 every mutant is caught or shown redundant; 1 some survive; 4 a workload is not clean as it is;
    5 Ctrl-C.
    """
    from repro.scenario.schema import bundled_names, find
    from repro.search.mutate.command import run_mutate

    names = workloads or [name for name in bundled_names() if name.startswith("generic_")]
    workloads_found = [find(name) for name in names]
    raise typer.Exit(run_mutate(workloads_found, range(seeds), workers, json, *consoles(quiet)))


@command("repro bench layersplit", "repro bench layersplit --lengths 40000 --json")
def bench(
    study: Annotated[Literal["layersplit"], typer.Argument(help="The study.")],
    lengths: Annotated[
        list[int] | None, typer.Option(min=1024, max=1_000_000, help="Prompt lengths, in tokens.", metavar="N")
    ] = None,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="Instead: how one length's row moves with what is assumed.")
    ] = False,
    workers: Annotated[int, number("Processes at once.")] = 2,
    json: Annotated[bool, typer.Option("--json", help="Print the rows as one JSON object.")] = False,
    quiet: Quiet = False,
) -> None:
    """Run a throughput study in the cost model: the real scheduler and caches, simulated time."""
    from repro.bench.command import run_lengths, run_sensitivity, table
    from repro.bench.layersplit import LENGTHS

    def done(line: str) -> None:
        if not quiet:
            say(line)

    if sensitivity:
        if lengths:
            raise UsageError("--sensitivity looks at one length; leave --lengths out")
        rows = run_sensitivity(workers, done)
    else:
        found = run_lengths(tuple(lengths or LENGTHS), workers, done)
        rows = {f"{each.length:,}": each for each in found}
    if json:
        print_json({"rows": [{"name": name} | msgspec.to_builtins(each) for name, each in rows.items()]})
    else:
        Output(highlight=False).print(table(rows, bars=not sensitivity))
