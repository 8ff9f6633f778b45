"""The summary of a run: what is counted, for whom it can be told, and what a killed run still says."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from detectors.evidence import Evidence, Operation
from reports.run.funnel import stages_of
from reports.run.story import (
    best_finding,
    lead_example,
    missing_edge,
    replay_command,
    story,
    time_text,
    wrong_reads,
)
from reports.run.summary import grouped, headline, summarise
from reports.run.words import compared_text, cut_text, retries_text
from repro.record.counts import Retries
from repro.record.requests import RequestRecord
from repro.record.verdict import DetectorAnswer
from repro.record.view import open_run
from tests.builders import (
    TOKEN,
    canary_finding,
    divergence_finding,
    make_folder,
    make_request,
    make_run,
    make_verdict,
    race_evidence,
    race_finding,
    race_requests,
    text_finding,
)


def test_a_run_with_the_race_is_summed_up(tmp_path: Path) -> None:
    summary = summarise(make_run(tmp_path))
    assert (summary.verdict, summary.exit_code, summary.seed) == ("anomaly", 1, 7)
    assert (summary.rate.count, summary.rate.of, summary.rate.sessions, summary.rate.sessions_hit) == (
        1,
        12,
        5,
        1,
    )
    counts = {stage.key: stage.count for stage in summary.funnel}
    assert counts == {
        "requests": 12, "exposed": 1, "raced": 1, "corrupted": 1, "poisoned": 0, "diverged": 1, "visible": 1,
    }  # fmt: skip
    assert [(group.detector, group.count) for group in summary.groups] == [
        ("ordering", 14), ("canary", 6), ("divergence", 1), ("repetition", 1),
    ]  # fmt: skip
    fault = summary.faults["loadback.copy_layer.delay"]
    assert (fault.reached, fault.fired, fault.reordered) == (40, 9, 7)
    assert summary.exercised["host_hit_tokens"] == 9_216 and summary.finishes == {"stop": 12}
    assert summary.ttft_ms is not None and summary.ttft_ms.p50 == pytest.approx(49.999)
    assert summary.token_ms is not None and summary.token_ms.p99 == pytest.approx(25.0)
    assert summary.lag_ms is not None and summary.lag_ms.p99 == pytest.approx(0.001)
    assert replay_command(summary) == f"repro reproduce {TOKEN}"


def test_what_a_target_cannot_tell_is_not_said_to_be_zero(tmp_path: Path) -> None:
    blind = {name: "not_applicable" for name in ("ordering", "canary", "garbled", "repetition")}
    stages = stages_of([make_request()], blind)
    counts = {stage.key: stage.count for stage in stages}
    assert counts["raced"] is counts["corrupted"] is counts["poisoned"] is counts["visible"] is None
    assert counts["diverged"] == 0
    seen = [make_request("a", visible=True, session="a"), make_request("b", session="b")]
    run = make_run(tmp_path, requests=seen, verdict=make_verdict(detectors=blind))
    assert summarise(run).rate.what == "answered wrongly" and summarise(run).rate.count == 1


def test_host_hits_that_no_request_reports_are_not_said_to_be_none(tmp_path: Path) -> None:
    run = make_run(tmp_path, requests=[make_request(cached_host_tokens=0)])
    assert [stage.count for stage in summarise(run).funnel if stage.key == "exposed"] == [None]


def test_the_rate_counts_a_poisoned_request_and_not_a_raced_one(tmp_path: Path) -> None:
    requests = [make_request("a", poisoned=True), make_request("b", raced=True)]
    assert summarise(make_run(tmp_path, requests=requests)).rate.count == 1


def test_a_killed_run_is_summed_up_as_unfinished(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    for request in race_requests():
        folder.add_request(request)
    summary = summarise(open_run(folder.path))
    folder.close("interrupted")
    assert (summary.verdict, summary.exit_code, summary.state) == ("unfinished", None, "running")
    assert summary.rate.count == 1 and replay_command(summary) == f"repro reproduce {folder.path}"
    assert summarise(open_run(folder.path)).verdict == "interrupted"


def test_a_run_that_was_never_judged_is_not_said_to_be_healthy(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    folder.add_request(make_request(oracle="", cached_host_tokens=64))
    summary = summarise(open_run(folder.path))
    folder.close("interrupted")
    assert headline(summary) == "Recorded requests: 1; the run ended before they were judged."
    counts = [stage.count for stage in summary.funnel]
    assert counts == [1, 1, None, None, None, None, None]


def test_a_failed_run_says_why(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    folder.close("failed", error="http://x refused the connection")
    summary = summarise(open_run(folder.path))
    assert summary.verdict == "failed" and summary.error == "http://x refused the connection"
    assert summary.ttft_ms is None and summary.funnel[0].count == 0


def test_detectors_keep_what_they_checked_and_why(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    told = {"canary": DetectorAnswer("unknown", 12, "torn log")}
    folder.close("finished", verdict=make_verdict(detectors={"canary": "unknown"}), detectors=told)
    assert summarise(open_run(folder.path)).detectors == told


def test_a_dropped_turn_is_counted_once_however_many_requests_go_without_it(tmp_path: Path) -> None:
    requests = [
        make_request("a-0"),
        make_request("a-1", dropped_turns=3, dropped_characters=900),
        make_request("a-2", dropped_turns=3, dropped_characters=900),
        make_request("b-0", dropped_turns=2, dropped_characters=10),
    ]
    run = make_run(tmp_path, requests=requests, verdict=make_verdict(contexts_cut={"limit_tokens": 8192}))
    cut = summarise(run).cut
    assert (cut.requests, cut.sessions, cut.turns, cut.characters) == (3, 2, 5, 910)
    assert "the model's limit of 8,192 tokens, 5 old turns and 910 characters" in cut_text(cut)
    assert cut_text(summarise(make_run(tmp_path)).cut) == ""


def test_what_became_of_answers_that_were_given_up_is_counted_by_the_last_retry(tmp_path: Path) -> None:
    requests = [
        make_request("a:0", finish="abort", detectors=["acceptance"]),
        make_request("a:0.1", retry_of="a:0"),
        make_request("b:0", finish="abort", detectors=["repetition"]),
        make_request("b:0.1", finish="abort", retry_of="b:0", detectors=["garbled"]),
        make_request("b:0.2", retry_of="b:0.1", finish="length"),
        make_request("c:0", finish="abort", detectors=["repetition"]),
        make_request("c:0.1", retry_of="c:0", finish="disconnect"),
        make_request("c:0.2", retry_of="c:0", finish="error", error="busy: 503"),
        make_request("d:0", detectors=["repetition"]),
        make_request("d:1", attempt=1),
    ]
    retries = summarise(make_run(tmp_path, requests=requests)).retries
    assert retries == Retries(aborted_retried=4, retried_clean=2, retried_convicted=1, retried_unanswered=1)
    told = retries_text(retries)
    assert told == (
        "4 answers were convicted in the stream, given up and asked for again: 2 came back clean, 1 convicted again, "
        "1 not at all."
    )
    assert retries_text(summarise(make_run(tmp_path)).retries) == ""


def test_the_acceptance_stage_is_there_where_the_detector_applies() -> None:
    requests = [make_request("a", acceptance=True), make_request("b")]
    for answer, count in (("anomaly", 1), ("clean", 1), ("not_applicable", None)):
        stages = {stage.key: stage.count for stage in stages_of(requests, {"acceptance": answer})}
        assert stages.get("acceptance") == count
    assert "acceptance" not in {stage.key for stage in stages_of(requests, {})}  # a run of an earlier version


def test_a_run_of_ones_own_traces_is_replayed_from_its_folder(tmp_path: Path) -> None:
    run = make_run(tmp_path, scenario_toml='title = "mine"\n')  # a token names bundled scenarios only
    assert replay_command(summarise(run)) == f"repro reproduce {run.path}"


def test_a_load_on_a_server_is_sent_again_with_the_same_options(tmp_path: Path) -> None:
    toml = '[load]\ntrace = ["my traces/a.json"]\nconcurrency = 4\nanswer_tokens_max = 64\n'
    toml += 'on_anomaly = "abort-retry"\n[acceptance]\nlength_min = 1.5\nprofile = "a.json"\n'
    run = make_run(tmp_path, scenario_toml=toml, config={"url": "http://127.0.0.1:30000"})
    assert replay_command(summarise(run)) == (
        "repro replay 'my traces/a.json' --target http://127.0.0.1:30000 --concurrency 4 --answer-tokens 64 "
        "--on-anomaly abort-retry --acceptance length_min=1.5 --acceptance profile=a.json --seed 7"
    )


def test_answers_that_were_decoded_again_are_told_with_suspects_and_sample(tmp_path: Path) -> None:
    told = compared_text(summarise(make_run(tmp_path)))
    assert told == (
        "12 of 12 answers were decoded again on a clean cache: 1 suspect and a sample of 11; 1 came out different."
    )
    assert compared_text(summarise(make_run(tmp_path, requests=[make_request(oracle="")]))) == ""


def test_a_run_without_a_readable_scenario_still_gives_a_summary(tmp_path: Path) -> None:
    verdict = make_verdict(faults={}, detectors={}, exercised={})
    summary = summarise(make_run(tmp_path, verdict=verdict, scenario_toml="not = [toml"))
    assert summary.faults == {} and summary.detectors == {} and summary.title == "hicache_early_read"


def test_a_control_run_says_that_nothing_was_armed(tmp_path: Path) -> None:
    toml = 'title = "T"\ndefects = ["hicache_early_read"]\n'
    control = summarise(make_run(tmp_path, scenario_toml=toml, verdict=make_verdict(control=True)))
    assert control.defects == () and control.conditions == ("control: guards in place",)
    assert summarise(make_run(tmp_path, scenario_toml=toml)).defects == ("hicache_early_read",)


def test_findings_of_one_signature_are_one_group_deepest_layer_first() -> None:
    groups = grouped([text_finding(), race_finding(count=3), race_finding(count=1, request="s9"), canary_finding()])
    assert [(group.layer, group.count, len(group.examples)) for group in groups] == [
        ("ordering", 4, 2), ("canary", 6, 1), ("text", 1, 1),
    ]  # fmt: skip
    assert groups[0].requests == 2


def test_a_race_is_told_with_both_operations_in_the_order_they_began() -> None:
    told = story(race_finding())
    assert told.index("loadback.copy_layer on stream load writes") < told.index("index.score on stream compute reads")
    assert "page 12, layer 2" in told and "680 us before loadback.copy_layer has finished" in told
    assert "compute waits for no event that load records" in missing_edge(race_finding())


def test_an_overlapping_example_is_shown_before_one_that_is_only_unordered() -> None:
    apart = race_finding(evidence=race_evidence(second=_later(20_000.0)))
    assert "19.300 ms later" not in story(race_finding())
    assert "18.600 ms later; in this schedule they did not overlap" in story(apart)
    group = grouped([apart, race_finding()])[0]
    assert lead_example(group) == race_finding() and best_finding(grouped([canary_finding(), apart])) == apart


def test_the_example_whose_read_got_wrong_bytes_is_shown_first_and_says_so() -> None:
    harmless = race_finding(request="other", evidence=race_evidence(page=1))
    groups = grouped([harmless, race_finding(), canary_finding()])
    best = best_finding(groups)
    assert best == race_finding()
    assert story(best, wrong_reads(groups)).endswith(f"The canary saw what came of it: {canary_finding().claim}.")
    assert "canary" not in story(harmless, wrong_reads(groups))


def test_a_race_that_ran_the_wrong_way_round_is_told_so() -> None:
    first = replace(race_evidence().first, enqueued_us=1.0, start_us=900.0, end_us=1400.0)
    second = replace(race_evidence().second, enqueued_us=2.0)
    inverted = race_finding(evidence=race_evidence(first=second, second=first, inverted=True))
    assert story(inverted).endswith(": enqueued later, it had ended 110 us before loadback.copy_layer began.")
    assert [side.name for side in inverted.evidence.operations] == ["loadback.copy_layer", "index.score"]


def _later(start_us: float) -> Operation:
    return replace(race_evidence().second, start_us=start_us, end_us=start_us + 10)


@pytest.mark.parametrize(
    "evidence",
    [
        {},
        {"first": None, "second": 3},
        {"first": {"stream": "load"}, "second": {"stream": "compute", "index": "x"}},
        {"first": {"stream": "load", "start_us": 5.0}, "second": {"stream": "c"}, "page": "?", "layer": None},
        {"stream": "compute", "index": 4},
    ],
)
def test_a_finding_with_evidence_of_no_known_kind_is_told_by_its_claim(evidence: dict[str, object]) -> None:
    finding = race_finding(evidence=Evidence.of_record(evidence))
    assert finding.evidence == evidence and finding.evidence.operations == ()
    assert story(finding) == f"{finding.claim}." and missing_edge(finding) == ""


def test_times_keep_their_microseconds_however_late() -> None:
    assert [time_text(us) for us in (0, 12.3456, 720, 1400, 9_999.5, 22_945_078.4)] == [
        "0 us", "12.346 us", "720 us", "1,400 us", "9,999.5 us", "22,945.078 ms",
    ]  # fmt: skip


def test_divergence_alone_is_the_best_finding_when_it_is_the_only_one() -> None:
    assert best_finding(grouped([divergence_finding()])) == divergence_finding()
    assert best_finding(()) is None


def test_an_empty_run_has_no_rate(tmp_path: Path) -> None:
    records: list[RequestRecord] = []
    assert summarise(make_run(tmp_path, requests=records, findings=[])).rate.of == 0
