"""The HTML report: what it shows, that nothing in it is active, and that it stays small."""

import base64
import hashlib
import re
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from detectors.evidence import Evidence
from reports.charts import first_token_chart
from reports.run.answers import visible_text
from reports.run.html import REPORT_BYTES_MAX, Bounds, render_report, write_report
from repro.base.errors import RecordError
from repro.base.probe import Access, AnyEvent, PageSet
from repro.record.view import open_run
from tests.builders import (
    TOKEN,
    canary_finding,
    divergence_finding,
    make_folder,
    make_op,
    make_request,
    make_run,
    make_verdict,
    race_events,
    race_evidence,
    race_finding,
    race_requests,
    text_finding,
)

HOSTILE = "</pre><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7*7 }}\x00\u202e<!--"
TAGS = {
    "html", "head", "meta", "link", "title", "style", "body", "a", "header", "p", "span", "h1", "div",
    "code", "button", "dl", "dt", "dd", "main", "section", "h2", "table", "thead", "tbody", "tr", "th",
    "td", "small", "details", "summary", "h3", "h4", "svg", "g", "rect", "text", "line", "circle",
    "path", "polygon", "defs", "clippath", "pre", "figure", "figcaption", "mark", "ul", "ol", "li", "b",
    "footer", "script",
}  # fmt: skip


class Page(HTMLParser):
    """What a browser would see: elements, attributes, and the text outside style and script."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.scripts: list[str] = []
        self._parts: list[str] = []
        self._inside = ""
        self.feed(source)
        self.close()
        self.text = "".join(self._parts)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attributes
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, text: str) -> None:
        if self._inside == "script":
            self.scripts.append(text)
        elif self._inside != "style":
            self._parts.append(text)


def assert_inert(source: str) -> Page:
    page = Page(source)
    assert set(page.tags) <= TAGS
    assert page.tags.count("script") == 1 == len(page.scripts)
    for name, value in page.attributes:
        assert not name.startswith("on") and name not in (
            "src",
            "srcdoc",
            "formaction",
            "action",
            "http-refresh",
        )
        if name in ("href", "xlink:href"):
            assert value is not None and value.startswith(("#", "data:,"))
    assert not re.search(r"url\(|@import", source)
    assert [value for name, value in page.attributes if name == "http-equiv"] == ["Content-Security-Policy"]
    return page


def hostile_run(root: Path, text: str) -> Iterator[object]:
    """Yield a run whose every string from outside is `text`."""
    second = replace(race_evidence().second, name=text, site=text, stream=text or "s")
    race = race_finding(
        claim=text, signature=text, request=text,
        evidence=race_evidence(second=second, missing_edge=text, history=(text,), requests=(text,)),
    )  # fmt: skip
    loop = text_finding(claim=text, excerpt=text)
    differs = divergence_finding(got=text, clean="clean", first_difference=0, request=text)
    request = make_request(
        text or "r", session=text, text=text, clean_text="clean", oracle="diverged", finish=text, error=text,
        origin=text, first_token_us=-1.0, visible=True,
    )  # fmt: skip
    verdict = make_verdict(
        token=text, fingerprint=text, why=[text], faults={text: {"fired": 1}}, exercised={text: 1},
        detectors={text: text}, defects=[text],
    )  # fmt: skip
    yield make_run(
        root, findings=[race, loop, differs], requests=[request], verdict=verdict, scenario=text,
        scenario_toml="", versions={"v": text},
    )  # fmt: skip


def test_a_script_in_an_answer_is_text(tmp_path: Path) -> None:
    for run in hostile_run(tmp_path, HOSTILE):
        page = assert_inert(render_report(run))  # type: ignore[arg-type]
        assert visible_text(HOSTILE) in page.text and "{{ 7*7 }}" in page.text and "\\x00" in page.text


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.sampled_from(["<script>", "</script>", "'\"", "<", ">", "&lt;", "{%", "}}", "--", "]]>", "\x00", "\n"])
        | st.text(st.characters(codec="utf-8"), max_size=8),
        max_size=8,
    ).map("".join)
)
def test_any_text_stays_inert(tmp_path: Path, text: str) -> None:
    for run in hostile_run(tmp_path, text):
        source = render_report(run)  # type: ignore[arg-type]
        assert_inert(source)
        outside = re.sub(r"(?s)<script>.*?</script>|<style>.*?</style>", "", source)
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", outside)


def test_the_policy_of_the_page_allows_its_own_script_and_no_request(tmp_path: Path) -> None:
    page = Page(render_report(make_run(tmp_path)))
    policies = [value or "" for name, value in page.attributes if name == "content" and "-src" in (value or "")]
    digest = base64.b64encode(hashlib.sha256(page.scripts[0].encode()).digest()).decode()
    assert policies == [
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    ]


def test_verdict_rate_and_command_come_first(tmp_path: Path) -> None:
    text = Page(render_report(make_run(tmp_path))).text
    places = [
        text.index(part)
        for part in ("Anomaly", "1 of 12 requests read wrong bytes: 8.33%", f"repro reproduce {TOKEN}",
                     "What happened to the requests", "Findings", "loadback.copy_layer on stream load",
                     "Missing edge", "History of page 12", "The answer of request s1-t1", "Faults", "Requests")
    ]  # fmt: skip
    assert places == sorted(places[:-1]) + places[-1:]


def test_every_cause_is_named_at_the_top_once_and_leads_to_its_evidence(tmp_path: Path) -> None:
    findings = [race_finding(count=535), *[race_finding(request=f"r{number}", count=1) for number in range(4)]]
    source = render_report(make_run(tmp_path, findings=[*findings, canary_finding()]))
    text = Page(source).text
    top = text[: text.index("What happened to the requests")]
    assert top.count("loadback.copy_layer write x index.score read of device index") == 1 and "539" in top
    assert '<a href="#f1">' in source and 'id="f1"' in source and '<a href="#f2">' in source


def test_a_run_against_a_server_speaks_of_seconds_and_claims_no_simulation(tmp_path: Path) -> None:
    verdict = make_verdict(client_lag_ms={"count": 90, "p50": 0.1, "p99": 2.5, "max": 7.0})
    run = make_run(tmp_path, config={"url": "http://127.0.0.1:1"}, verdict=verdict)
    text = Page(render_report(run)).text
    assert "simulated" not in text and "virtual seconds" not in text and "http://127.0.0.1:1" in text
    assert "The client's event loop ran late by p50 0.1 ms, p99 2.5, at most 7.0" in text


def test_the_chart_of_a_real_clock_begins_with_the_first_request() -> None:
    records = [make_request(f"s{number}", sent_us=7e9 + number, first_token_us=7e9 + 1e6) for number in range(5)]
    assert "7,000" in first_token_chart(records, width=300)
    assert "7,000" not in first_token_chart(records, width=300, real_time=True)


def test_a_race_shows_both_operations_with_stream_layer_site_and_times(tmp_path: Path) -> None:
    text = Page(render_report(make_run(tmp_path))).text
    for part in (
        "serve/kv/tiers.py:208", "serve/forward.py:88", "500 us to 1,400 us", "720 us to 790 us",
        "load, operation 5", "compute, operation 7", "nothing orders these two",
    ):  # fmt: skip
        assert part in text


def test_the_first_wrong_word_is_marked_and_control_characters_are_seen(tmp_path: Path) -> None:
    source = render_report(make_run(tmp_path))
    assert "<mark>ceivedceivedceived</mark>" in source and '<span class="esc">\\x00</span>' in source


def test_headings_step_down_one_level_at_a_time_and_every_picture_has_words(tmp_path: Path) -> None:
    page = Page(render_report(make_run(tmp_path)))
    levels = [int(tag[1]) for tag in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    figures = [value for name, value in page.attributes if name == "aria-label"]
    assert any("Timeline of the streams load, compute" in (value or "") for value in figures)
    ids = [value for name, value in page.attributes if name == "id"]
    labelled = [value for name, value in page.attributes if name == "aria-labelledby"]
    assert set(labelled) <= set(ids) and len(ids) == len(set(ids))


def test_more_requests_than_fit_are_counted_and_marked_ones_are_kept(tmp_path: Path) -> None:
    requests = [make_request(f"s{number}-t0") for number in range(700)] + race_requests(0)
    source = render_report(make_run(tmp_path, requests=requests))
    assert "The first 500 are shown, marked ones first; 201 more are in requests.parquet" in Page(source).text
    assert Page(source).text.index("s1-t1") < Page(source).text.index("s0-t0")


@pytest.mark.parametrize("requests", [[], [make_request(first_token_us=-1.0, sent_us=-1.0, finished_us=-1.0)]])
def test_a_run_without_findings_or_answers_has_a_page(tmp_path: Path, requests: list[object]) -> None:
    verdict = make_verdict(verdict="clean", findings={}, faults={}, exercised={})
    run = make_run(tmp_path, requests=requests, findings=[], events=[], verdict=verdict)  # type: ignore[arg-type]
    text = assert_inert(render_report(run)).text
    assert "Clean" in text and "No detector convicted." in text and "No fault was planned." in text


def test_findings_with_poor_evidence_have_a_page(tmp_path: Path) -> None:
    findings = [
        race_finding(evidence=Evidence.of_record({"first": {"stream": "load"}, "second": None, "history": "x"})),
        canary_finding(evidence=Evidence.of_record({"pages": [], "layer": "?"})),
        divergence_finding(evidence=Evidence.of_record({"got": 3})),
        text_finding(evidence=Evidence.of_record({})),
    ]
    assert_inert(render_report(make_run(tmp_path, findings=findings)))


def test_a_killed_run_has_a_page_that_says_so(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    folder.emit(race_events()[0])
    folder.add_request(make_request())
    path = write_report(open_run(folder.path))
    folder.close("interrupted")
    assert path == folder.report_path and "The run was killed" in Page(path.read_text()).text


def test_a_disk_that_is_full_is_told_and_the_run_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path)

    def refuse(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(RecordError, match=r"report.html: cannot be written \(No space left.*repro report"):
        write_report(run)
    assert not (run.path / "report.html").exists()


def test_a_hundred_thousand_events_and_huge_answers_stay_within_five_megabytes(tmp_path: Path) -> None:
    events: list[AnyEvent] = [PageSet(1, (10, 14))]
    read = (Access(False, "device", "index", 2, 1, "s1-t1"),)
    events += [
        make_op(f"stream-{number % 5}", number, start_us=number / 50, end_us=number / 50 + 3, accesses=read)
        for number in range(100_000)
    ]
    answer = "<&>" * 30_000
    requests = [
        make_request(
            f"s{number}", text=answer + "x", clean_text=answer + "y", oracle="diverged", corrupted=True,
            sent_us=1e4 * number, first_token_us=1e4 * number + 7,
        )
        for number in range(800)
    ]  # fmt: skip
    findings = [race_finding(signature=f"ordering: {number}") for number in range(40)]
    findings += [text_finding(signature=f"{number}", excerpt=answer) for number in range(40)]
    run = make_run(tmp_path, events=events, requests=requests, findings=findings)
    started_s = time.perf_counter()
    source = render_report(run)
    print(f"{len(source.encode()):,} bytes in {time.perf_counter() - started_s:.1f} s")
    assert len(source.encode()) <= REPORT_BYTES_MAX
    assert "more kinds of finding" in Page(source).text and "operations further away are not drawn" in source


def test_a_page_that_would_be_too_large_shows_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [make_request(f"s{number}-t0", text="word " * 40) for number in range(400)]
    run = make_run(tmp_path, requests=requests)
    whole = render_report(run, Bounds())
    monkeypatch.setattr("reports.run.html.REPORT_BYTES_MAX", len(whole) - 1)
    assert "The first 100 are shown" in Page(render_report(run)).text
