"""What a night writes is read back by readers that are not ours: XML, JSON, Markdown, HTML."""

import json
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest
from markdown_it import MarkdownIt

from reports.night.night import Night
from reports.night.page import render_markdown, render_night
from repro.fleet.nightly.artefacts import junit_xml
from repro.fleet.nightly.job import Job, JobResult
from tests.fleet.nightly.builders import PretendedRuns, make_result
from tests.fleet.nightly.test_night import anomalous, night_of

NASTY = 'refused <script>alert(1)</script> | `x` & \x00\x1b "q"'
VOID = {"meta", "link", "br", "img", "hr", "input"}


def odd(job: Job) -> JobResult:
    """Find something in one silent run, and die in another with a text that means something to every reader."""
    if job.role == "silent" and job.seed == 1:
        return make_result(job, verdict="died", why=(NASTY,))
    return anomalous(job)


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Night]:
    folder = tmp_path_factory.mktemp("nights")
    night_of(folder / "1", PretendedRuns(), utc="20261124T020000Z")
    return folder / "2", night_of(folder / "2", PretendedRuns(odd), baseline="latest")


def test_the_folder_holds_all_files_and_no_half_of_one(nights: tuple[Path, Night]) -> None:
    assert {path.name for path in nights[0].iterdir()} == {
        "index.html", "journal.jsonl", "junit.xml", "nightly.json", "summary.md",
    }  # fmt: skip


def test_junit_has_a_test_case_for_every_case_property_and_gate(nights: tuple[Path, Night]) -> None:
    folder, night = nights
    suite = ElementTree.parse(folder / "junit.xml").getroot().find("testsuite")
    assert suite is not None
    cases = {(case.get("classname"), case.get("name")): case for case in suite}
    assert len(cases) == len(night.cases) + len(night.gates) == int(suite.get("tests", ""))
    died = cases["repro.small", "silent"].find("error")
    assert died is not None and died.text is not None and "<script>alert(1)</script>" in died.text
    assert list(cases["repro.small", "found"]) == []
    assert cases["repro.gate", "new findings"].find("failure") is not None
    assert (suite.get("errors"), suite.get("failures")) == ("1", "2")


def test_a_clean_night_has_no_failure_in_its_junit(tmp_path: Path) -> None:
    suite = ElementTree.fromstring(junit_xml(night_of(tmp_path / "n", PretendedRuns()))).find("testsuite")
    assert suite is not None and (suite.get("errors"), suite.get("failures")) == ("0", "0")


def test_the_json_is_the_night(nights: tuple[Path, Night]) -> None:
    folder, night = nights
    told = json.loads((folder / "nightly.json").read_text())
    assert (told["verdict"], told["exit_code"], told["answer"]) == ("failed", 4, "worse")
    assert told["digest"] == night.digest and told["findings"][0]["new"] is True


def test_how_far_the_runs_were_spread_is_said(nights: tuple[Path, Night]) -> None:
    spread = msgspec.structs.replace(nights[1], made_s=60.0, elapsed_s=32.0)
    assert "runs of 60 s in 32 s: 1.88 at once" in render_markdown(spread)
    assert "1.88 at once" in render_night(spread, [])


def test_the_markdown_is_tables_that_no_text_breaks(nights: tuple[Path, Night]) -> None:
    _, night = nights
    tokens = MarkdownIt("commonmark").enable("table").parse(render_markdown(night))
    rows = [sum(t.type == "td_open" for t in _row(tokens, n)) for n, t in enumerate(tokens) if t.type == "tr_open"]
    assert rows.count(5) == len(night.cases) and rows.count(4) == len(night.gates) + len(night.findings)
    assert not any(t.type.startswith("html") or (t.children and "html_inline" in str(t.children)) for t in tokens)


def _row(tokens: list, start: int) -> list:  # type: ignore[type-arg]
    return tokens[start : next(n for n in range(start, len(tokens)) if tokens[n].type == "tr_close")]


class Reader(HTMLParser):
    """Notes tags that are not closed, and what a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.scripts = 0
        self.text = ""
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        self.loads += [value or "" for key, value in attrs if key == "src"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_whole_loads_nothing_and_runs_nothing_that_a_server_said(nights: tuple[Path, Night]) -> None:
    reader = Reader()
    reader.feed((nights[0] / "index.html").read_text())
    assert reader.open == [] and reader.scripts == 1 and reader.loads == []
    assert "<script>alert(1)</script>" in reader.text  # as text
    assert reader.text.index("canary: new") < reader.text.index("Past nights")
    assert "repro reproduce" in reader.text and "Against 24 Nov 2026" in reader.text


def test_the_page_leads_to_the_reports_beside_it(nights: tuple[Path, Night]) -> None:
    _, night = nights
    finding = msgspec.structs.replace(night.findings[0], report=f"{night.folder}/runs/a b/report.html")
    page = render_night(msgspec.structs.replace(night, findings=(finding,)), [])
    assert 'href="runs/a%20b/report.html"' in page
