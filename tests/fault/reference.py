"""Writes the reference of points and kinds into scenarios/README.md: python -m tests.fault.reference."""

import re
from pathlib import Path

from repro.fault.kinds import KINDS
from repro.fault.points import PLACES, PLANES, POINTS, names_of

PAGE = Path(__file__).parents[2] / "scenarios" / "README.md"
BLOCK = re.compile(r"(?<=<!-- (\w{5}) points -->\n).*?(?=<!-- /\1 points -->\n)", re.DOTALL)


def reference(block: str) -> str:
    """Return the tables of the legal points, or of the wrong bytes."""
    legal = block == "legal"
    points = {name: point for name, point in POINTS.items() if (name in PLACES) != legal}
    kinds = {name: kind for name, kind in KINDS.items() if kind.corrupting != legal}
    rows = [(f"`{name}`", point.what.rstrip(","), codes(names_of(point.kinds))) for name, point in points.items()]
    tables = [table(("kind", "the point"), [(f"`{name}`", kind.what) for name, kind in kinds.items()])]
    if legal:
        tables.insert(0, table(("plane", "points are"), [(f"`{name}`", where) for name, where in PLANES.items()]))
        tables.append(table(("point", "is", "kinds"), rows))
    else:
        tables.append(table(("point", "is"), [row[:2] for row in rows]))
    return "\n".join(tables)


def codes(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ("---",) * len(head), *rows))


if __name__ == "__main__":
    PAGE.write_text(BLOCK.sub(lambda block: reference(block[1]), PAGE.read_text()))
