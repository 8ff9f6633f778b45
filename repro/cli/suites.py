"""Commands for every night: a suite of runs, and the comparison of two."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from repro.base.errors import UsageError
from repro.cli.common import RUNS, WORKERS, Json, Output, Quiet, Runs, Seed, app, examples, guarded

BUNDLED = "bundled"


@app.command(
    epilog=examples(
        "repro nightly --suite smoke --out night",
        "repro nightly --suite nightly --time 2h --baseline latest",
        "repro nightly --suite my_suite.toml --target http://127.0.0.1:30000",
    )
)
@guarded
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
    from repro.fleet.nightly.command import Command, duration_s
    from repro.fleet.nightly.command import nightly as run_nightly
    from repro.fleet.nightly.plan import Target

    if target != BUNDLED and not target.startswith(("http://", "https://")):
        raise UsageError(f'--target "{target}": give {BUNDLED}, or a URL such as http://127.0.0.1:30000')
    aim = Target("" if target == BUNDLED else target, api, defect, reference)
    time_s = duration_s(time) if time else None
    command = Command(suite, runs, out, time_s, requests, seed, aim, baseline, resume, workers, ray, json)
    raise typer.Exit(run_nightly(command, Output(highlight=False), Output(stderr=True, highlight=False, quiet=quiet)))


@app.command(
    epilog=examples("repro compare runs/nightly/smoke-20261123T020000Z-0 runs/nightly/smoke-20261124T020000Z-0")
)
@guarded
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
    from repro.fleet.nightly.command import compare_sides

    raise typer.Exit(compare_sides(before, after, same_within, json, Output(highlight=False)))
