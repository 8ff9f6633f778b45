"""Tables that benches write into RESULTS.md: in their own block, with command and circumstances, and nowhere else."""

import argparse
import re
from pathlib import Path

import pytest
from rich.table import Table

from tests.bench import commands, results
from tests.bench.commands import COMMANDS

HERE = Path(__file__).parent
BLOCKS = re.compile(r"<!-- (\w+) -->\n(.*?)<!-- /\1 -->\n", re.DOTALL)


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "RESULTS.md"
    path.write_text("# Results\n\n<!-- one -->\nold\n<!-- /one -->\n\n<!-- two -->\nkept\n<!-- /two -->\n")
    return path


def small_table() -> Table:
    table = Table("race", title="Found")
    table.add_column("seeds", justify="right")
    table.add_row("a|b", "20")
    return table


def test_record_replaces_its_block_and_leaves_the_others(page: Path) -> None:
    results.record("one", "python -m tests.bench.one", small_table(), "all found \\1", results=page)
    blocks = dict(BLOCKS.findall(page.read_text()))
    assert blocks["two"] == "kept\n"
    assert blocks["one"].startswith("`python -m tests.bench.one`\\\n")
    assert blocks["one"].endswith("| a\\|b | 20 |\n\nall found \\1\n")
    assert page.read_text().startswith("# Results\n")


def test_record_twice_leaves_one_table(page: Path) -> None:
    for _ in range(2):
        results.record("one", "python -m tests.bench.one", small_table(), results=page)
    assert page.read_text().count("**Found**") == 1


def test_record_without_a_block_says_which_is_missing(page: Path) -> None:
    with pytest.raises(SystemExit, match="<!-- three -->"):
        results.record("three", "python -m tests.bench.three", "line", results=page)


def test_circumstances_name_date_commit_machine_and_time() -> None:
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d, commit [0-9a-f]{7,}( with changes)?, .+, \d+ cores; "
        r"took [\d,]+ s, [\d,]+ s of processor time\.",
        results.circumstances(),
    )


def test_markdown_keeps_title_head_and_alignment() -> None:
    assert results.markdown(small_table()) == "**Found**\n\n| race | seeds |\n| --- | ---: |\n| a\\|b | 20 |"


def test_show_writes_nothing_unless_asked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(results, "record", lambda *_: pytest.fail("recorded without --record"))
    results.show(argparse.Namespace(record=False), small_table(), "a [line]")
    assert "a [line]" in capsys.readouterr().out


def test_show_records_under_the_bench_and_the_command_without_record(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    monkeypatch.setattr("sys.argv", ["/somewhere/tests/bench/leaks.py", "--seeds", "3", "--record"])
    monkeypatch.setattr(results, "record", lambda *given: seen.extend(given))
    results.show(argparse.Namespace(record=True), "line")
    assert seen == ["leaks", "python -m tests.bench.leaks --seeds 3", "line"]


def test_command_of_a_page_is_run_and_its_output_recorded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[str] = []
    monkeypatch.chdir(HERE.parents[1])
    monkeypatch.setattr("sys.argv", ["commands.py", "bank", "--record"])
    monkeypatch.setitem(COMMANDS, "bank", "repro list --no-such-option")
    monkeypatch.setattr(commands, "record", lambda *given: seen.extend(given))
    with pytest.raises(SystemExit) as ended:
        commands.main()
    assert ended.value.code == 2
    assert seen[:2] == ["bank", "repro list --no-such-option"] and seen[2].startswith("exit 2\n\n```\n")


def test_every_bench_that_records_has_a_block_and_every_block_a_bench() -> None:
    benches = {path.stem for path in HERE.glob("*.py") if "\n    add_record(parser)\n" in path.read_text()}
    blocks = [name for name, _ in BLOCKS.findall(results.RESULTS.read_text())]
    assert sorted(blocks) == sorted(benches - {"commands"} | set(COMMANDS))


def test_every_bench_is_in_the_list_of_commands() -> None:
    runnable = {path.stem for path in HERE.glob("*.py") if "\nif __name__ == " in path.read_text()}
    listed = set(re.findall(r"^\| `python -m tests\.bench\.(\w+)", results.RESULTS.read_text(), re.MULTILINE))
    assert listed == runnable
