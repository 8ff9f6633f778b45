"""Commands for every night: a suite of runs, and the comparison of two."""

from pathlib import Path
from typing import Annotated

import typer

from repro.cli.common import Output, command, consoles
from repro.cli.options import Json, NightRuns, NightTarget, Results, Seed, number, url_of


@command(
    "repro nightly --suite smoke --out night",
    "repro nightly --suite nightly --time 2h --baseline latest",
    "repro nightly --suite my_suite.toml --target http://127.0.0.1:30000",
)
def nightly(
    *,
    suite: Annotated[str, typer.Option(help="A bundled suite (smoke, nightly, bank, clean), or a file.")] = "nightly",
    time: Annotated[str, typer.Option(help="Take seed after seed until then: 2h, 30m, 90s.", metavar="TIME")] = "",
    requests: Annotated[int | None, number("Take seed after seed until so many requests.")] = None,
    seed: Seed = 0,
    served: NightTarget,
    night: NightRuns,
    results: Results,
) -> None:
    """Run a suite unattended and say worse, same or better, with evidence.

    Writes junit.xml, summary.md, index.html, nightly.json and the runs that are not clean. Exit code 3: more vacuous
    runs than the suite allows; 5: the numbers cannot tell, or the target went away.
    """
    from repro.fleet.nightly.command import Command, duration_s
    from repro.fleet.nightly.command import nightly as run_nightly
    from repro.fleet.nightly.plan import Target

    target = Target(url_of(served.target), served.api, served.defect, served.reference)
    asked = Command(
        suite,
        results.runs,
        night.out,
        duration_s(time) if time else None,
        requests,
        seed,
        target,
        night.baseline,
        night.resume,
        night.workers,
        night.ray,
        results.json,
    )
    raise typer.Exit(run_nightly(asked, *consoles(results.quiet)))


@command("repro compare runs/nightly/smoke-20261123T020000Z-0 runs/nightly/smoke-20261124T020000Z-0")
def compare(
    before: Annotated[Path, typer.Argument(metavar="A", help="A night's folder or nightly.json, or a run's folder.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="The other one.")],
    same_within: Annotated[
        float | None, number("Rates that differ by less are the same: 0.01.", least=1e-9, most=1, metavar="X")
    ] = None,
    json: Json = False,
) -> None:
    """Compare two nights or runs: rates, exact test, effect with its interval, and the power there was.

    Exit codes: 0 same or better, 1 worse, 5 inconclusive.
    """
    from repro.fleet.nightly.command import compare_sides

    raise typer.Exit(compare_sides(before, after, same_within, json, Output(highlight=False)))
