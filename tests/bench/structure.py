"""Size and shape of the product, each figure beside its goal: python -m tests.bench.structure [--tree DIR] [--json].

Read are the Python files of repro, detectors, reports and scenarios, and README.md. Exit code 1 says that a goal is
missed; the places that miss it stand below the table.
"""

import argparse
import ast
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.table import Table
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from tests.bench.results import add_record, show

PRODUCT = ("repro", "detectors", "reports", "scenarios")
PLACES_SHOWN = 20
PROSE_WIDTH_MAX = 120

ROOMS_MAX = 20
PRODUCT_LINES_MAX = 36_000
FUNCTION_LINES_P90_MAX = 20
FUNCTION_LINES_MAX = 60
FILE_LINES_MAX = 400
PARAMETERS_MAX = 8
README_WORDS_MAX = 1_300
README_LINES_MAX = 180

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Figure:
    """One measured figure, the most it may be (None: no goal), and the places that miss the goal, worst first."""

    name: str
    value: int
    most: int | None = None
    places: tuple[str, ...] = ()

    @property
    def met(self) -> bool:
        return self.most is None or self.value <= self.most


@dataclass(frozen=True)
class Source:
    """One parsed file of the product."""

    path: Path  # relative to the tree
    lines: int
    syntax: ast.Module

    @classmethod
    def read(cls, tree: Path, path: Path) -> "Source":
        text = path.read_text()
        return cls(path.relative_to(tree), text.count("\n"), ast.parse(text, str(path)))

    @property
    def module(self) -> str:
        parts = self.path.with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    def functions(self) -> Iterator[Function]:
        return (node for node in ast.walk(self.syntax) if isinstance(node, Function))

    def place(self, function: Function) -> str:
        return f"{self.path}:{function.lineno} {function.name}"


def measure(tree: Path) -> list[Figure]:
    """Return every figure of the checkout at `tree`."""
    sources = [Source.read(tree, path) for top in PRODUCT for path in sorted((tree / top).rglob("*.py"))]
    graph = imports(sources)
    between_rooms = merged(graph, room)
    return [
        *_layout(sources),
        Figure("product files", len(sources)),
        Figure("product lines", sum(source.lines for source in sources), PRODUCT_LINES_MAX),
        *_functions(sources),
        _counted("files over 400 lines", ((source.lines, str(source.path)) for source in sources), FILE_LINES_MAX),
        Figure("imports between rooms", sum(map(len, between_rooms.values()))),
        _cycles("import cycles of modules", graph),
        _cycles("import cycles of rooms, and inside serve", merged(graph, room_or_part_of_serve)),
        *measure_readme((tree / "README.md").read_text()),
    ]


def _layout(sources: list[Source]) -> Iterator[Figure]:
    paths = [source.path for source in sources]
    in_repro = [path for path in paths if path.parts[0] == "repro"]
    loose = [str(path) for path in in_repro if len(path.parts) == 2 and path.stem not in ("__init__", "__main__")]
    rooms = {path.parts[1] for path in in_repro if len(path.parts) > 2} | (
        {path.parts[0] for path in paths} - {"repro"}
    )
    packages = [source for source in sources if source.path.stem == "__init__"]
    silent = [str(package.path) for package in packages if not ast.get_docstring(package.syntax)]
    yield Figure("loose modules in repro/", len(loose), 0, tuple(loose))
    yield Figure("rooms", len(rooms), ROOMS_MAX)
    yield Figure("packages without a docstring", len(silent), 0, tuple(silent))


def _functions(sources: list[Source]) -> Iterator[Figure]:
    functions = [(source.place(function), function) for source in sources for function in source.functions()]
    lengths = [((function.end_lineno or 0) - function.lineno + 1, place) for place, function in functions]
    middle, ninth = (
        np.percentile([length for length, _ in lengths], (50, 90), method="inverted_cdf").astype(int).tolist()
    )
    yield Figure("functions", len(functions))
    yield Figure("function lines, p50", middle)
    yield Figure("function lines, p90", ninth, FUNCTION_LINES_P90_MAX)
    yield Figure("function lines, max", max(lengths)[0], FUNCTION_LINES_MAX)
    yield _counted("functions over 60 lines", lengths, FUNCTION_LINES_MAX)
    yield _counted(
        "functions over 8 parameters", ((parameters(function), place) for place, function in functions), PARAMETERS_MAX
    )


def _counted(name: str, measured: Iterable[tuple[int, str]], most: int) -> Figure:
    """Return how many of the measured places are above `most`; none should be."""
    above = sorted((pair for pair in measured if pair[0] > most), key=lambda pair: (-pair[0], pair[1]))
    return Figure(name, len(above), 0, tuple(f"{number:,}  {place}" for number, place in above))


def parameters(function: Function) -> int:
    """Return how many parameters a caller sees: self and cls do not count."""
    signature = function.args
    named = [*signature.posonlyargs, *signature.args]
    bound = bool(named) and named[0].arg in ("self", "cls")
    starred = (signature.vararg is not None) + (signature.kwarg is not None)
    return len(named) - bound + len(signature.kwonlyargs) + starred


def imports(sources: list[Source]) -> dict[str, set[str]]:
    """Return which product modules each module imports: at the top, inside functions, and for type checking alike."""
    modules = {source.module for source in sources}
    return {source.module: set(_imported(source, modules)) - {source.module} for source in sources}


def _imported(source: Source, modules: set[str]) -> Iterator[str]:
    for node in ast.walk(source.syntax):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                inside = source.module.split(".")
                up = node.level - (source.path.stem == "__init__")
                base = ".".join(inside[: len(inside) - up] + ([base] if base else []))
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                if inner in modules or base in modules:
                    yield inner if inner in modules else base


def room(module: str) -> str:
    """Return the direct package of repro that a module is in, or detectors, reports, scenarios."""
    return ".".join(module.split(".")[: 2 if module.startswith("repro.") else 1])


def room_or_part_of_serve(module: str) -> str:
    return ".".join(module.split(".")[:3]) if module.startswith("repro.serve.") else room(module)


def merged(graph: dict[str, set[str]], group: Callable[[str], str]) -> dict[str, set[str]]:
    """Return the imports between groups of modules; those inside a group are left out."""
    groups: dict[str, set[str]] = {group(module): set() for module in graph}
    for module, targets in graph.items():
        groups[group(module)] |= {group(target) for target in targets} - {group(module)}
    return groups


def _cycles(name: str, graph: dict[str, set[str]]) -> Figure:
    """Return how many groups of modules, or rooms, import each other in a circle (strongly connected components)."""
    names = sorted(graph)
    number = {name: index for index, name in enumerate(names)}
    edges = [(number[name], number[target]) for name in names for target in graph[name]]
    rows, columns = zip(*edges, strict=True) if edges else ((), ())
    matrix = csr_array((np.ones(len(edges)), (rows, columns)), shape=(len(names), len(names)))
    _, group_of = connected_components(matrix, connection="strong")
    groups = [[names[index] for index in np.flatnonzero(group_of == group)] for group in np.unique(group_of)]
    cycles = sorted((group for group in groups if len(group) > 1), key=len, reverse=True)
    return Figure(name, len(cycles), 0, tuple(" <-> ".join(cycle) for cycle in cycles))


def measure_readme(text: str) -> Iterator[Figure]:
    wide = [(len(line), f"README.md:{number}") for number, line in prose(text) if len(line) > PROSE_WIDTH_MAX]
    yield Figure("README words", len(text.split()), README_WORDS_MAX)
    yield Figure("README lines", text.count("\n"), README_LINES_MAX)
    yield Figure("README prose lines over 120 characters", len(wide), 0, tuple(f"{n}  {place}" for n, place in wide))


def prose(markdown: str) -> Iterator[tuple[int, str]]:
    """Yield the numbered lines that are neither code nor rows of a table."""
    in_code = False
    for number, line in enumerate(markdown.splitlines(), 1):
        fence = re.match(r"\s*(```|~~~)", line) is not None
        if not (in_code or fence or line.lstrip().startswith("|")):
            yield number, line
        in_code ^= fence


def table(figures: list[Figure]) -> Table:
    """Return the figures, each with its goal."""
    rows = Table("figure", "value", "goal", "")
    for figure in figures:
        goal = "" if figure.most is None else f"at most {figure.most:,}" if figure.most else "none"
        rows.add_row(figure.name, f"{figure.value:,}", goal, "" if figure.met else "missed")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, default=Path(__file__).parents[2], help="another checkout to measure")
    parser.add_argument("--json", action="store_true", help="one object instead of the table")
    add_record(parser)
    given = parser.parse_args()
    figures = measure(given.tree)
    if given.json:
        print(json.dumps({figure.name: asdict(figure) | {"met": figure.met} for figure in figures}, indent=2))
    else:
        show(given, table(figures))
        for figure in figures:
            if not figure.met and figure.places:
                more = len(figure.places) - PLACES_SHOWN
                print(f"\n{figure.name}", *figure.places[:PLACES_SHOWN], sep="\n")
                if more > 0:
                    print(f"and {more} more (--json has all)")
    sys.exit(not all(figure.met for figure in figures))


if __name__ == "__main__":
    main()
