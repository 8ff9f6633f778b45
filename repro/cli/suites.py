"""Commands for every night: a suite of runs, and the comparison of two."""

from pathlib import Path
from typing import Annotated

import typer

from repro.base.errors import UsageError
from repro.cli.common import Output, command, print_json, sayer
from repro.cli.options import Json, NightRuns, NightTarget, Results, Seed, number, url_of

UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0}
TIME_S_MAX = 168 * 3600.0


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
    from repro.fleet.nightly.console import print_night
    from repro.fleet.nightly.night import NightOptions
    from repro.fleet.nightly.night import nightly as run_nightly
    from repro.fleet.nightly.plan import Target

    options = NightOptions(
        suite=suite, root=results.runs, out=night.out, time_s=duration_s(time) if time else None, requests=requests,
        seed=seed, target=Target(url_of(served.target), served.api, served.defect, served.reference),
        baseline=night.baseline, resume=night.resume, workers=night.workers, ray=night.ray,
    )  # fmt: skip
    came_to = run_nightly(options, sayer(results.quiet))
    if results.json:
        print_json(came_to)
    else:
        print_night(came_to, Output(highlight=False))
    raise typer.Exit(came_to.exit_code)


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
    from repro.fleet.nightly.compare import SAME_WITHIN, exit_code, read_side
    from repro.fleet.nightly.compare import compare as compare_sides
    from repro.fleet.nightly.console import print_comparison

    compared = compare_sides(read_side(before), read_side(after), same_within=same_within or SAME_WITHIN)
    if json:
        print_json(compared)
    else:
        print_comparison(compared, Output(highlight=False))
    raise typer.Exit(exit_code(compared))
