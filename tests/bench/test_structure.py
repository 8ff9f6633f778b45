"""The figures of tests.bench.structure: each is counted as a reader would count it, on small trees."""

import json
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

from tests.bench.structure import (
    PRODUCT,
    Figure,
    Source,
    imports,
    measure,
    merged,
    parameters,
    prose,
    room,
    room_or_part_of_serve,
)

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The smallest tree that meets every goal."""
    for package in ("repro", "repro/serve", "detectors", "reports", "scenarios"):
        write(tmp_path, f"{package}/__init__.py", '"""What lives here."""\n')
    write(tmp_path, "repro/serve/engine.py", "def step(self):\n    return 1\n")
    write(tmp_path, "README.md", "# repro\n\nFinds races.\n")
    return tmp_path


def write(tree: Path, path: str, text: str) -> None:
    (tree / path).parent.mkdir(parents=True, exist_ok=True)
    (tree / path).write_text(text)


def figure(tree: Path, name: str) -> Figure:
    return next(each for each in measure(tree) if each.name == name)


def sources(tree: Path) -> list[Source]:
    paths = (path for top in PRODUCT for path in sorted((tree / top).rglob("*.py")))
    return [Source.read(tree, path) for path in paths]


def test_smallest_tree_meets_every_goal(tree: Path) -> None:
    assert [each.name for each in measure(tree) if not each.met] == []
    assert figure(tree, "rooms").value == 4
    assert figure(tree, "product files").value == 6
    assert figure(tree, "product lines").value == 7


def test_module_beside_main_is_loose(tree: Path) -> None:
    write(tree, "repro/__main__.py", "")
    write(tree, "repro/kept.py", "")
    assert figure(tree, "loose modules in repro/").places == ("repro/kept.py",)


def test_package_without_docstring_is_named(tree: Path) -> None:
    write(tree, "repro/load/__init__.py", "")
    assert figure(tree, "packages without a docstring").places == ("repro/load/__init__.py",)


def test_function_lines_count_signature_docstring_and_blank_lines(tree: Path) -> None:
    write(
        tree,
        "repro/serve/long.py",
        "@cache\ndef long(\n    a: int,\n) -> int:\n" + "\n" * 55 + "    a += 1\n    return a\n",
    )
    assert figure(tree, "function lines, max").value == 60
    assert figure(tree, "functions over 60 lines").value == 0
    write(tree, "repro/serve/long.py", "def long(\n    a: int,\n) -> int:\n" + "\n" * 57 + "    return a\n")
    assert figure(tree, "functions over 60 lines").places == ("61  repro/serve/long.py:1 long",)


def test_parameters_leave_self_out_and_count_keywords_and_stars(tree: Path) -> None:
    write(
        tree,
        "repro/serve/wide.py",
        "class A:\n"
        "    def eight(self, a, b, c, d, /, e, f, *, g, h): ...\n"
        "    def nine(self, a, b, c, d, e, f, g, *rest, **named): ...\n",
    )
    eight, nine = list(Source.read(tree, tree / "repro/serve/wide.py").functions())
    assert (parameters(eight), parameters(nine)) == (8, 9)
    assert figure(tree, "functions over 8 parameters").places == ("9  repro/serve/wide.py:3 nine",)


def test_file_of_400_lines_is_within_the_bound_and_401_is_not(tree: Path) -> None:
    write(tree, "repro/serve/edge.py", "\n" * 400)
    write(tree, "repro/serve/over.py", "\n" * 401)
    assert figure(tree, "files over 400 lines").places == ("401  repro/serve/over.py",)


def test_cycle_is_found_through_functions_and_relative_imports(tree: Path) -> None:
    write(tree, "repro/serve/kv/__init__.py", '"""Pages."""\n')
    write(tree, "repro/serve/kv/pool.py", "def f():\n    from ..sched import plan\n")
    write(tree, "repro/serve/sched.py", "from repro.serve.kv import pool\nplan = 1\n")
    assert figure(tree, "import cycles of modules").places == ("repro.serve.kv.pool <-> repro.serve.sched",)


def test_cycle_of_rooms_needs_no_cycle_of_modules(tree: Path) -> None:
    for path, text in {
        "repro/serve/kv/reads.py": "import repro.serve.sched.plan\n",
        "repro/serve/kv/page.py": "",
        "repro/serve/sched/plan.py": "",
        "repro/serve/sched/loop.py": "from repro.serve.kv.page import *\n",
    }.items():
        write(tree, path, text)
    assert figure(tree, "import cycles of modules").value == 0
    assert figure(tree, "import cycles of rooms, and inside serve").places == ("repro.serve.kv <-> repro.serve.sched",)


def test_imports_are_those_that_grimp_sees() -> None:
    graph = grimp.build_graph(*PRODUCT, cache_dir=None)
    found = imports(sources(REPOSITORY))
    assert found == {module: graph.find_modules_directly_imported_by(module) for module in found}


def test_imports_merge_into_rooms() -> None:
    graph = {
        "repro.run.run": {"repro.serve.kv.page", "detectors.pages.canary"},
        "repro.serve.kv.page": {"repro.base.rng"},
    }
    assert merged(graph, room) == {
        "repro.run": {"repro.serve", "detectors"},
        "repro.serve": {"repro.base"},
    }
    assert room_or_part_of_serve("repro.serve.kv.page") == "repro.serve.kv"
    assert room_or_part_of_serve("repro.run.run") == "repro.run"


def test_prose_is_neither_code_nor_table() -> None:
    text = "one\n\n```\ncode\n```\n| a | b |\n  ```toml\n  x = 1\n  ```\ntwo\n"
    assert [line for _, line in prose(text) if line] == ["one", "two"]


def test_readme_bounds_count_every_word_and_wide_prose(tree: Path) -> None:
    write(tree, "README.md", "word " * 1301 + "\n")
    missed = {each.name: each.value for each in measure(tree) if not each.met}
    assert missed == {"README words": 1301, "README prose lines over 120 characters": 1}


@pytest.mark.parametrize(("loose", "code"), [(False, 0), (True, 1)])
def test_exit_code_says_whether_a_goal_is_missed(tree: Path, loose: bool, code: int) -> None:
    if loose:
        write(tree, "repro/kept.py", "")
    command = [sys.executable, "-m", "tests.bench.structure", "--tree", str(tree), "--json"]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert ended.returncode == code, ended.stderr
    loose_modules = json.loads(ended.stdout)["loose modules in repro/"]
    assert (loose_modules["value"], loose_modules["most"], loose_modules["met"]) == (int(loose), 0, not loose)
