"""The files of a night: one JSON, JUnit XML, a Markdown summary, and the page."""

from pathlib import Path
from xml.etree import ElementTree

import msgspec

from reports.night.night import CaseRow, GateRow, Night, PastNight
from reports.night.page import render_markdown, render_night
from repro.fleet.nightly.history import FILE
from repro.fleet.nightly.journal import NEXT_STEP
from repro.record.lines import write_whole

# What XML 1.0 cannot hold, whatever a server may have said in an error.
_UNPRINTABLE = {code: "\ufffd" for code in (*range(9), 11, 12, *range(14, 32), 0xFFFE, 0xFFFF, *range(0xD800, 0xE000))}


def write_all(folder: Path, night: Night, history: list[PastNight]) -> None:
    """Write all of them, each whole or not at all. Raises RecordError for a disk that refuses."""
    contents = {
        FILE: msgspec.json.format(msgspec.json.encode(night), indent=2),
        "junit.xml": junit_xml(night),
        "summary.md": render_markdown(night).encode(),
        "index.html": render_night(night, history).encode(),
    }
    for name, content in contents.items():
        write_whole(folder / name, content, NEXT_STEP)


def junit_xml(night: Night) -> bytes:
    """Return the night as JUnit XML: a test case for every case and property, and for every gate."""
    suite = ElementTree.Element("testsuite", name=f"repro nightly {night.suite}", time=f"{night.elapsed_s:.3f}")
    for row in night.cases:
        _add_case(suite, row)
    for gate in night.gates:
        _add_gate(suite, gate)
    counts = {kind: len(suite.findall(f"testcase/{kind}")) for kind in ("failure", "error", "skipped")}
    suite.set("tests", str(len(suite.findall("testcase"))))
    for kind, name in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        suite.set(name, str(counts[kind]))
    whole = ElementTree.Element("testsuites")
    whole.append(suite)
    ElementTree.indent(whole)
    return bytes(ElementTree.tostring(whole, encoding="utf-8", xml_declaration=True))


def _add_case(suite: ElementTree.Element, row: CaseRow) -> None:
    case = ElementTree.SubElement(suite, "testcase", classname=f"repro.{row.case}", name=row.role)
    if row.died:
        _add(case, "error", row.told, "\n".join(row.died))
    else:
        _add_answer(case, row.met, row.told)


def _add_gate(suite: ElementTree.Element, gate: GateRow) -> None:
    case = ElementTree.SubElement(suite, "testcase", classname="repro.gate", name=gate.name)
    _add_answer(case, gate.met, f"{gate.value}; {gate.limit}")


def _add_answer(case: ElementTree.Element, met: bool | None, words: str) -> None:
    """Add a row's answer. JUnit has no word for "unknown": it becomes an error, which no reader takes for a pass."""
    if met is None:
        _add(case, "error", words, "inconclusive")
    elif not met:
        _add(case, "failure", words, words)


def _add(case: ElementTree.Element, kind: str, message: str, text: str) -> None:
    ElementTree.SubElement(case, kind, message=message.translate(_UNPRINTABLE)).text = text.translate(_UNPRINTABLE)
