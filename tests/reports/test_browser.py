"""The report in a real browser: silent, offline, and open at a click."""

import json
from pathlib import Path
from typing import Any

import pytest

from reports.experiment.page import render_experiment
from reports.run.html import write_report
from tests.builders import divergence_finding, make_run, race_finding, text_finding
from tests.reports.browser import use
from tests.reports.steps import make_result
from tests.reports.test_html import HOSTILE


@pytest.fixture
def page(browser: Any, tmp_path: Path) -> Any:
    """Open the report of a run whose answers are hostile."""
    findings = [
        race_finding(),
        divergence_finding(got=f"def read{HOSTILE}"),
        text_finding(excerpt=HOSTILE),
    ]
    path = write_report(make_run(tmp_path, findings=findings))
    for log in ("browser", "performance"):
        browser.get_log(log)
    browser.get(path.as_uri())
    return browser


def requested(browser: Any) -> list[str]:
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"]
    return [url for url in sent if not url.startswith(("data:", "chrome:", "about:"))]


def test_it_asks_the_network_for_nothing_and_the_console_is_silent(page: Any) -> None:
    page.execute_script("for (const each of document.querySelectorAll('details')) each.open = true")
    assert requested(page) == [page.current_url]
    assert page.get_log("browser") == []


def test_a_hostile_answer_runs_nothing_and_is_seen_as_text(page: Any) -> None:
    assert page.execute_script("return document.scripts.length") == 1
    assert page.execute_script("return document.images.length") == 0
    text = page.execute_script("return document.body.textContent")
    assert "<script>alert(1)</script>" in text and "onerror=alert(2)" in text


def test_the_evidence_is_one_click_away(page: Any) -> None:
    finding = page.find_element("css selector", "details.finding")
    lanes = finding.find_element("css selector", "svg.lanes")
    assert not lanes.is_displayed()
    finding.find_element("css selector", "summary").click()
    assert lanes.is_displayed()
    shown = finding.text
    for part in ("Missing edge", "serve/kv/tiers.py:208", "History of page 12", "Generation"):
        assert part in shown


def test_all_findings_open_together_and_marked_requests_are_filtered(page: Any) -> None:
    page.find_element("css selector", "[data-toggle]").click()
    assert page.execute_script("return document.querySelectorAll('details.finding:not([open])').length") <= 1
    rows = "#requests tbody tr"
    before = [row.is_displayed() for row in page.find_elements("css selector", rows)]
    page.find_element("css selector", "[data-filter]").click()
    after = [row.is_displayed() for row in page.find_elements("css selector", rows)]
    assert all(before) and after.count(True) == 1


def test_a_link_to_a_finding_opens_it(page: Any) -> None:
    page.execute_script("location.hash = '#f2'")
    assert page.execute_async_script(
        "const done = arguments[0]; setTimeout(() => done(document.getElementById('f2').open), 50)"
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1280])
def test_it_fits_a_phone_and_text_stands_out_in_light_and_dark(page: Any, width: int, scheme: str) -> None:
    use(page, width=width, scheme=scheme)
    page.execute_script("for (const each of document.querySelectorAll('details')) each.open = true")
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    for selector in ("body", ".note", ".verdict", ".tag", "mark", ".same", "th small", "button"):
        assert page.execute_script(CONTRAST, selector) >= 4.5, selector


@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_of_an_experiment_is_silent_and_fits(browser: Any, tmp_path: Path, width: int) -> None:
    path = tmp_path / "experiment.html"
    path.write_text(render_experiment(make_result(title=HOSTILE)), encoding="utf-8")
    for log in ("browser", "performance"):
        browser.get_log(log)
    browser.get(path.as_uri())
    use(browser, width=width, scheme="light")
    assert requested(browser) == [browser.current_url] and browser.get_log("browser") == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    heads = browser.find_elements("css selector", ".steps thead th b")
    assert [head.text for head in heads] == list("abcde")
    assert sum(each.is_displayed() for each in browser.find_elements("css selector", ".chart svg")) == 1


CONTRAST = """
  const element = document.querySelector(arguments[0]);
  const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
  let behind = element;
  while (behind && (parts(getComputedStyle(behind).backgroundColor)[3] ?? 1) < 1) behind = behind.parentElement;
  const light = (colour) => {
    const [r, g, b] = parts(colour).map((c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const a = light(getComputedStyle(element).color), b = light(getComputedStyle(behind).backgroundColor);
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
"""
