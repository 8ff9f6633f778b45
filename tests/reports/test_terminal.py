"""What is printed after and during a run, on every kind of terminal."""

import io
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from reports.run.live import LiveView, Progress, lines_of, progress_parts
from reports.run.summary import summarise
from reports.run.terminal import print_summary
from repro.record.verdict import DetectorAnswer
from repro.record.view import Run, open_run
from tests.builders import (
    TOKEN,
    divergence_finding,
    make_folder,
    make_request,
    make_run,
    make_verdict,
    race_finding,
    race_requests,
    text_finding,
)


def printed(run: Run, *, encoding: str = "utf-8", **options: object) -> str:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    print_summary(run, summarise(run), Console(file=file, **options), report="runs/x/report.html")  # type: ignore[arg-type]
    return raw.getvalue().decode(encoding)


def test_the_first_line_is_the_verdict_with_rate_and_interval(tmp_path: Path) -> None:
    first, second = printed(make_run(tmp_path), width=100).splitlines()[:2]
    assert first.startswith("ANOMALY  1 of 12 requests read wrong bytes: 8.33% (95% interval 0.21")
    assert second == "hicache_early_read, seed 7, exit 1"


def test_both_racing_operations_the_answers_and_the_command_are_there(tmp_path: Path) -> None:
    shown = printed(make_run(tmp_path), width=100)
    for part in (
        "loadback.copy_layer on stream load writes", "index.score on stream compute reads", "Missing edge:",
        "def read(path):", "ceivedceived\\x00", "fired 9, changed an order 7", "Corrupted at first hand",
        f"replay: repro reproduce {TOKEN}\n", "report: runs/x/report.html\n",
    ):  # fmt: skip
        assert part in shown


def test_an_answer_that_looks_wrong_is_the_example_with_how_it_ends(tmp_path: Path) -> None:
    plain = make_request("s9-t1", oracle="diverged", text="def wrong(): pass\n", raced=True)
    other = divergence_finding(got="def wrong(): pass\n", request="s9-t1")
    loop = text_finding(claim="the answer repeats 6 characters 3 times, to its end")
    findings = [race_finding(request="s9-t1"), other, divergence_finding(), loop]
    shown = printed(make_run(tmp_path, requests=[plain, *race_requests()], findings=findings), width=100)
    example = shown.partition("Request s1-t1")[2]
    assert "it ends:\n  def readceivedceivedceived" in trimmed(example)
    assert "repetition: the answer repeats 6 characters 3 times, to its end\n" in trimmed(example)


def test_each_cause_is_one_line_with_its_count(tmp_path: Path) -> None:
    shown = printed(
        make_run(tmp_path, findings=[race_finding(count=535), race_finding(), divergence_finding()]), width=120
    )
    assert "549 x  ordering    loadback.copy_layer write x index.score read of device index\n" in trimmed(shown)
    assert "1 x  divergence  a clear token differs from the clean decode\n" in trimmed(shown)


def test_detectors_that_could_not_answer_are_named_with_the_reason(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    why = "the target does not tell its accesses"
    told = {name: DetectorAnswer("not_applicable", why=why) for name in ("ordering", "ownership")}
    folder.close("finished", verdict=make_verdict(), detectors=told)
    assert f"not applicable  ordering, ownership: {why}\n" in trimmed(printed(open_run(folder.path), width=120))


def trimmed(shown: str) -> str:
    return "".join(f"{line.rstrip()}\n" for line in shown.splitlines())


@pytest.mark.parametrize("width", [20, 40, 60, 200])
def test_the_command_stays_in_one_line_to_copy_at_any_width(tmp_path: Path, width: int) -> None:
    assert f"replay: repro reproduce {TOKEN}\n" in printed(make_run(tmp_path), width=width)


def test_without_colour_there_is_no_escape_sequence(tmp_path: Path) -> None:
    assert "\x1b" in printed(make_run(tmp_path), width=80, force_terminal=True, color_system="standard")
    assert "\x1b" not in printed(make_run(tmp_path), width=80)


def test_an_old_terminal_gets_ascii_and_no_error(tmp_path: Path) -> None:
    got = divergence_finding(got="中 é", clean="ok")
    shown = printed(make_run(tmp_path, findings=[race_finding(), got]), encoding="ascii", width=80)
    assert "\\u4e2d" in shown and "####" in shown


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(codec=None), max_size=60))
def test_an_answer_cannot_steer_the_terminal(tmp_path: Path, text: str) -> None:
    finding = divergence_finding(got=f"[red]{text}", clean="x")
    shown = printed(make_run(tmp_path, findings=[finding]), width=80)
    assert "\x1b" not in shown and "\x07" not in shown and "[red]" in shown


def test_what_a_target_cannot_tell_is_a_dash(tmp_path: Path) -> None:
    verdict = make_verdict(detectors={"ordering": "not_applicable", "canary": "not_applicable"})
    rows = printed(make_run(tmp_path, verdict=verdict), width=80).splitlines()
    assert any(row.split()[:2] == ["Raced", "-"] for row in rows)


def test_a_killed_run_is_printed_too(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    folder.add_request(make_request())
    run = open_run(folder.path)
    assert "UNFINISHED" in printed(run, width=80) and "killed" in printed(run, width=80)
    folder.close("failed")


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_into_a_file_progress_is_a_plain_line_every_five_seconds_and_a_last_one() -> None:
    file, clock = io.StringIO(), Clock()
    with LiveView(Console(file=file, width=40), clock) as view:
        for second in range(12):
            clock.now_s = 100.0 + second
            view.update(
                Progress(sessions_done=second, sessions=24, tokens=100 * second, ttft_ms=12.4, found={"canary": 1})
            )
    lines = file.getvalue().splitlines()
    assert [line.split("sessions ")[1].split()[0] for line in lines] == ["0", "5", "10", "11"]
    assert "100 tokens/s" in lines[1] and "TTFT 12 ms" in lines[1] and "canary 1" in lines[1]
    assert "\x1b" not in file.getvalue()


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_no_part_of_the_progress_is_lost_or_torn_on_a_narrow_terminal(width: int) -> None:
    parts = progress_parts(
        Progress(
            requests_done=1234,
            requests_open=16,
            tokens=9,
            ttft_ms=12_000.0,
            found={"ordering": 4000, "text": 7},
            virtual_s=1e4,
        ),
        900.0,
    )
    lines = lines_of(parts, width)
    assert "  ".join(lines) == "  ".join(parts) and {"ordering 4,000", "text 7"} <= {*parts}
    assert all(len(line) < width for line in lines if line not in parts)


def test_on_a_terminal_one_line_is_redrawn_at_most_ten_times_a_second() -> None:
    file, clock = io.StringIO(), Clock()
    console = Console(file=file, width=30, force_terminal=True)
    with LiveView(console, clock) as view:
        for step in range(100):
            clock.now_s = 100.0 + step / 1000
            view.update(Progress(requests_done=step))
        drawn = file.getvalue().count("load")
        clock.now_s += 1
        view.update(Progress(requests_done=100))
    assert drawn <= 2 and "\x1b" in file.getvalue()
