"""The pages are true: paths exist, links lead somewhere, commands are commands; README.md keeps within its bounds."""

import re
import tomllib
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from repro.cli import app
from repro.run.run import RunOptions, run_scenario
from repro.scenario.schema import find
from repro.search.play import Trial, play
from repro.search.reproduce import prove, recipe_of
from tests.bench.small import small_loads
from tests.bench.structure import measure_readme
from tests.tiny import UTC_RUN

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
FOLDERS = ("repro", "detectors", "reports", "scenarios", "tests")
FOREIGN = ("MODEL_CARD.md",)  # other repositories' paths stand in it
PAGES = sorted(
    path
    for path in chain(ROOT.glob("*.md"), *((ROOT / folder).rglob("*.md") for folder in FOLDERS))
    if path.name not in FOREIGN
)
PICTURE_BYTES_MAX = 150_000

LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")
CODE = re.compile(r"`([^`\n]+)`")
PATH = re.compile(r"[\w.-]+(?:/[\w.-]+)*/?")
SUFFIXES = (".py", ".md", ".toml", ".yml", ".yaml", ".png", ".json", ".jsonl", ".html", ".xml", ".parquet")
ROOMS = ("repro/", "detectors/", "reports/", "scenarios/", "tests/", ".github/", ".ci/")
WRITTEN = ("runs/", "shrunk/")  # by commands, not by us


def blocks(text: str) -> list[str]:
    return re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def without_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def named_paths(page: Path) -> set[str]:
    """Return what a page names in inline code that must be a file or folder of this repository."""
    words = CODE.findall(without_blocks(page.read_text()))
    paths = {word for word in words if PATH.fullmatch(word) and "/" in word and not word.startswith(WRITTEN)}
    return {path for path in paths if path.endswith(("/", *SUFFIXES)) or path.startswith(ROOMS)}


def headings(page: Path) -> set[str]:
    """Return the anchors of a page as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", without_blocks(page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_path_that_a_page_names_exists(page: Path) -> None:
    bases = (page.parent, ROOT, ROOT / "repro")
    assert {path for path in named_paths(page) if not any((base / path).exists() for base in bases)} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    links = filter(None, chain.from_iterable(LINK.findall(page.read_text())))
    for link in links:
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in headings(target), link


def test_readme_keeps_within_its_bounds() -> None:
    figures = list(measure_readme(README.read_text()))
    assert [(figure.name, figure.value) for figure in figures if not figure.met] == []


def test_readme_shows_no_token_and_ci_finds_its_test_command() -> None:
    text = README.read_text()
    assert re.findall(r"\bA[A-Za-z0-9_-]{30,}\b", text) == []
    assert "pytest" in text.split("<!-- tests -->\n```\n", 1)[1].split("```", 1)[0]


def test_picture_of_a_report_is_a_small_png() -> None:
    picture = (ROOT / "reports" / "example.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n") and len(picture) <= PICTURE_BYTES_MAX
    assert 'src="reports/example.png"' in README.read_text()


def test_every_figure_of_readme_has_a_recorded_table() -> None:
    results = (ROOT / "tests" / "bench" / "RESULTS.md").read_text()
    figures = README.read_text().split("## Figures", 1)[1].split("## ", 1)[0]
    benches = re.findall(r"\| `(\w+)` \|$", figures, re.MULTILINE)
    assert len(benches) == 8
    assert [name for name in benches if not re.search(rf"<!-- {name} -->\n`python -m", results)] == []


def commands() -> set[str]:
    return set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_that_a_page_shows_is_one(page: Path) -> None:
    text = page.read_text()
    lines = [line for block in blocks(text) for line in block.splitlines()] + CODE.findall(text)
    shown = {found[1] for line in lines if (found := re.search(r"(?:^|&& )repro ([a-z]+)\b(?!/)", line))}
    assert shown <= commands()


def test_readme_names_every_command() -> None:
    assert {name for name in commands() if not re.search(rf"`(?:\w+ )?{name}\b", README.read_text())} == set()


def test_token_of_the_readmes_race_replays_on_this_code(tmp_path: Path) -> None:
    options = RunOptions(overrides=small_loads()["hicache_early_read"])
    played = play(Trial(find("hicache_early_read"), options, str(tmp_path / "played")))
    print(f"repro reproduce {played.token}")  # with pytest -s: a token of this code, which README.md cannot show
    recipe = recipe_of(played.token, tmp_path / "elsewhere")
    again = run_scenario(recipe.scenario, recipe.options, root=tmp_path / "again", utc=UTC_RUN)
    assert prove(recipe, again).startswith("the same run")


def test_page_of_the_code_shows_the_layers_that_the_linter_holds() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = [line.replace("repro.", "") for line in contracts[0]["layers"] if line != "repro.__main__"]
    assert blocks((ROOT / "repro" / "README.md").read_text())[0].splitlines() == layers


def test_page_of_the_code_names_every_room_and_at_most_30_words() -> None:
    page = (ROOT / "repro" / "README.md").read_text()
    table = page.split("## Rooms", 1)[1].split("## ", 1)[0]
    rooms = {path.parent.name for path in (ROOT / "repro").glob("*/__init__.py")}
    assert rooms - set(re.findall(r"`(\w+)`", table)) == set()
    words = page.split("## Glossary", 1)[1].split("| --- | --- |\n", 1)[1].strip().splitlines()
    assert len(words) <= 30


def workflow(name: str) -> Any:
    return yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text())


def steps(name: str) -> list[str]:
    return [step["run"] for job in workflow(name)["jobs"].values() for step in job["steps"] if "run" in step]


def test_ci_workflow_runs_what_must_pass_before_a_change_lands() -> None:
    assert steps("ci") == [".ci/run"]


def test_nightly_workflow_calls_the_command_of_the_page() -> None:
    (night,) = [step for step in steps("nightly") if step.startswith("repro nightly")]
    page = (ROOT / "scenarios" / "README.md").read_text()
    shown = [line for block in blocks(page) for line in block.splitlines()]
    words = ("repro nightly", "--time 2h", "--baseline latest")
    assert all(word in night for word in words)
    assert any(all(word in line for word in words) for line in shown)


def test_pre_commit_has_the_checks_of_ci() -> None:
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    entries = {hook["entry"].partition(" ")[0] for hook in local["hooks"]}
    checks = (ROOT / ".ci" / "run").read_text().splitlines()
    assert {check.split()[0] for check in checks if check.startswith(("ruff ", "mypy", "lint-imports"))} == entries


@pytest.mark.parametrize("folder", ["runs", "shrunk"])
def test_git_ignores_what_commands_write_by_default(folder: str) -> None:
    assert f"/{folder}/" in (ROOT / ".gitignore").read_text().splitlines()
