"""Commands that look for races, make them small, and examine the stack."""

import time
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import typer

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
    app,
    errors,
    examples,
    guarded,
    live_line,
    print_json,
)

FINDINGS_SHOWN = 20  # of `repro detect`
HUNTED = ("ordering", "canary", "divergence", "text")  # layers of the truth


@app.command(
    epilog=examples(
        "repro hunt sched_double_free", "repro hunt my_race.toml --all --time 600", "repro hunt X --control"
    )
)
@guarded
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
    from repro.run.options import RunOptions
    from repro.search.console import print_hunt, progress_line
    from repro.search.hunt import Quarry, read_corpus, result_of
    from repro.search.hunt import hunt as search

    quarry = msgspec.convert(
        {
            "search": strategy, "budget": budget, "time_s": time_s, "layers": layers, "everything": every,
            "full": full, "stamps": numerics == "stamps",
        },
        Quarry,
    )  # fmt: skip
    with live_line(quiet) as show:
        tally = search(
            found, RunOptions(seed, control, no_faults), quarry, read_corpus(corpus), root=runs, workers=workers,
            clock_s=time.monotonic, on_progress=lambda tally: show(progress_line(tally, budget)),
        )  # fmt: skip
    result = result_of(tally)
    if json:
        print_json(result)
    else:
        print_hunt(tally, Output(highlight=False))
    raise typer.Exit(result.exit_code)


@app.command(
    epilog=examples(
        "repro shrink AwBzIKh1tn-w6nJTBdNnJS7b79yAAOANPw...", "repro shrink runs/my_race/20261124T101500Z-7"
    )
)
@guarded
def shrink(
    what: Annotated[str, typer.Argument(metavar="TOKEN|RUN", help="A token, or the folder of a run.")],
    signature: Annotated[
        str,
        typer.Option(
            help="Keep the finding with this in its cause; if not given, what the scenario expects.", metavar="TEXT"
        ),
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
    from repro.search.console import print_shrunk
    from repro.search.reproduce import recipe_of
    from repro.search.shrink.shrink import Shrinking
    from repro.search.shrink.shrink import shrink as make_small

    recipe = recipe_of(what, runs)
    for warning in recipe.warnings:
        errors.print(f"note: {warning}", markup=False, soft_wrap=True)
    shrinking = Shrinking(signature=signature, budget=budget, workers=workers, root=runs, out=out)
    with live_line(quiet) as show:
        result = make_small(recipe.scenario, recipe.options, shrinking, show)
    if json:
        print_json(result)
    else:
        print_shrunk(result, Output(highlight=False))
    raise typer.Exit(result.verdict.exit_code)


@app.command(
    epilog=examples(
        "repro detect answers.jsonl", "repro detect output.jsonl input.jsonl --json", "repro detect --events t"
    )
)
@guarded
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
    output = Output(highlight=False)
    if files:
        from repro.tools.detect_texts import detect_answers

        found = detect_answers(files, redact=redact)
        if json:
            print_json(found)
            raise typer.Exit(found.verdict.exit_code)
        count = f"{found.answers:,} answers, {found.with_prompt:,} with their prompt; {found.unanswered:,} unanswered"
        output.print(f"{found.verdict.upper()}  {count}", markup=False, soft_wrap=True)
        for name, convicted in found.detectors.items():
            output.print(f"{convicted:>6} x  {name}", markup=False)
        for each in found.findings[:FINDINGS_SHOWN]:
            output.print(f"{each.where} {each.id}: {each.finding.claim}", markup=False, soft_wrap=True)
        if len(found.findings) > FINDINGS_SHOWN:
            output.print(f"and more; --json shows {len(found.findings):,}", markup=False)
        raise typer.Exit(found.verdict.exit_code)
    assert events is not None
    from repro.tools.detect_events import detect as judge_events

    told = judge_events(events)
    if json:
        print_json(told)
        raise typer.Exit(told.verdict.exit_code)
    output.print(f"{told.verdict.upper()}  {told.events:,} events", markup=False)
    for finding in told.findings:
        output.print(f"{finding.count} x  {finding.claim}", markup=False, soft_wrap=True)
        if "missing_edge" in finding.evidence:
            output.print(f"  missing edge: {finding.evidence['missing_edge']}", markup=False, soft_wrap=True)
    raise typer.Exit(told.verdict.exit_code)


@app.command(epilog=examples("repro mutate", "repro mutate generic_pd --seeds 5 --json"))
@guarded
def mutate(
    workloads: Annotated[
        list[str] | None, typer.Argument(help="Scenarios without a defect; the seven generic ones if none.")
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
    from repro.search.mutate.command import run_mutate

    names = workloads or [name for name in scenarios.bundled_names() if name.startswith("generic_")]
    out, told = Output(highlight=False), Output(stderr=True, highlight=False, quiet=quiet)
    raise typer.Exit(run_mutate([scenarios.find(name) for name in names], range(seeds), workers, json, out, told))


@app.command(epilog=examples("repro bench layersplit", "repro bench layersplit --lengths 40000 --json"))
@guarded
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
        print_json({"rows": [{"name": name} | msgspec.to_builtins(each) for name, each in rows.items()]})
    else:
        Output(highlight=False).print(table(rows, bars=not sensitivity))
