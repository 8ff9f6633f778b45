"""Commands that serve a stack, and that list what there is."""

from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from repro.base.errors import UsageError
from repro.cli.common import Output, command, print_json, say, set_threads
from repro.cli.options import Seed, Threads, number


@command("repro serve --port 30000", "repro serve --scenario hicache_early_read")
def serve(
    port: Annotated[int, number("0 picks a free one.", least=0, most=65535)] = 30000,
    host: Annotated[
        str, typer.Option(help="Where to listen; the default is this machine only.", metavar="ADDRESS")
    ] = "127.0.0.1",
    config: Annotated[
        str, typer.Option(help="A bundled configuration (see `repro list`).", metavar="NAME")
    ] = "tiny-hicache",
    defect: Annotated[
        list[str] | None, typer.Option(help="Serve a stack with this defect (see `repro list`).", metavar="NAME")
    ] = None,
    scenario: Annotated[
        str | None, typer.Option(help="Serve a scenario's stack, with its defect and its faults.", metavar="NAME")
    ] = None,
    seed: Seed = 0,
    threads: Threads = None,
) -> None:
    """Serve the bundled stack over HTTP (OpenAI's API and SGLang's /generate) until Ctrl-C."""
    if scenario is not None and defect:
        raise UsageError("--scenario brings its own defect; give --defect with --config")
    from repro.scenario.schema import find

    found = None if scenario is None else find(scenario)
    set_threads(threads)
    from repro.tools.serve import Service, serve_bundled, service_of

    service = (
        service_of(config, tuple(defect or ())) if found is None else Service(found.config, found.defects, found.faults)
    )

    def ready(url: str) -> None:
        say(f"serving {scenario or config} at {url} (Ctrl-C ends it)")

    serve_bundled(service, host=host, port=port, seed=seed, on_ready=ready)


@command(
    "repro sglang -- --model-path MODEL --enable-hierarchical-cache --port 30000",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def sglang(context: typer.Context) -> None:
    """Launch SGLang's server (0.5.11) with our plugin; what is behind -- is for the server.

    Its control, on a port of this machine, takes delays and defects while it runs: POST /plan with a TOML text as in a
    scenario file, GET /counts. Exit code 4: it died, or did not prove that the plugin is active.
    """
    from repro.engines.sglang.server.command import run_sglang

    run_sglang(context.args, say)


@command(name="list")
def list_all() -> None:
    """List the bundled scenarios, defects and configurations."""
    import repro.fleet.experiment.plan as experiments
    import repro.scenario.schema as scenarios
    from repro.fault.defects import DEFECTS
    from repro.serve.config import CONFIGS

    bundled = map(scenarios.find, scenarios.bundled_names())
    in_steps = filter(None, map(experiments.find, scenarios.bundled_names("experiments")))
    listed: dict[str, list[tuple[str, str]]] = {
        "Scenarios (repro run NAME)": [(each.name, each.title) for each in bundled],
        "Experiments, in steps (repro run NAME)": [(each.name, each.title) for each in in_steps],
        "Defects (--defect NAME)": [],
    }
    for defect in DEFECTS.values():
        listed["Defects (--defect NAME)"] += [(defect.name, defect.races), ("", defect.reference)]
    listed["Configurations (repro serve --config NAME)"] = [(name, config.in_words) for name, config in CONFIGS.items()]
    _print_lists(listed)


@command("repro faults", "repro faults --json")
def faults(json: Annotated[bool, typer.Option("--json", help="Print all faults as one JSON object.")] = False) -> None:
    r"""List every fault that a scenario's [\[fault]] may ask for, by plane: its name, and what happens.

    Legal ones change times and orders: a correct server survives them. Corrupting ones change bytes: detectors must
    see them. `at` is the name up to its last point, `do.kind` the rest.
    """
    from repro.fault.points import PLANES, catalogue

    found = catalogue()
    if json:
        print_json({"faults": [each._asdict() for each in found]})
        return
    listed: dict[str, list[tuple[str, str]]] = {f"{plane}: {what}": [] for plane, what in PLANES.items()}
    for each in found:
        words = each.what if each.legal else f"corrupting: {each.what}"
        listed[f"{each.plane}: {PLANES[each.plane]}"].append((each.name, words))
    _print_lists(listed)


def _print_lists(listed: dict[str, list[tuple[str, str]]]) -> None:
    """Print names with what they mean, under titles."""
    output = Output(highlight=False)
    for title, rows in listed.items():
        table = Table.grid(padding=(0, 2), pad_edge=True)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for row in rows:
            table.add_row(*map(Text, row))
        output.print(Text(title), table)
