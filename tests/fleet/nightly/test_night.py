"""A night from its plan to its verdict, without a run: what counts, what a resume does, which exit code it comes to."""

import itertools
from pathlib import Path

import msgspec
import pytest

from reports.night.night import Night
from repro.base.errors import RecordError, UsageError
from repro.fleet.nightly.job import Job, JobResult
from repro.fleet.nightly.journal import FILE, Journal
from repro.fleet.nightly.night import night_id, run_night
from repro.fleet.nightly.plan import Plan, Target
from tests.fleet.nightly.builders import PretendedRuns, make_result, make_suite

SEQUENTIAL = "sequential = { rate_low = 0.05, rate_high = 0.5 }\n"
UTC = "20261125T020000Z"


def night_of(
    folder: Path, pool: PretendedRuns, *, plan: Plan | None = None, baseline: str = "", utc: str = UTC
) -> Night:
    """Run a night in a folder, or go on with the one that is there."""
    plan = plan or Plan(make_suite(folder.parent), Target(), 0)
    id_ = night_id(plan.suite, plan.target, 0, baseline, utc)
    begun = (folder / FILE).exists()
    journal = Journal.resume(folder, id_) if begun else Journal.create(folder, id_)
    try:
        seconds = itertools.count()
        return run_night(
            plan, journal, pool, folder=folder, clock_s=lambda: float(next(seconds)), done=lambda result: None
        )
    finally:
        journal.close()


def anomalous(job: Job) -> JobResult:
    """Find something in silent runs."""
    result = make_result(job)
    wrong = {"verdict": "anomaly", "signatures": {"canary: new": 1}, "sessions": ((1, 3), (0, 3))}
    return msgspec.structs.replace(result, **wrong) if job.role == "silent" else result  # type: ignore[arg-type]


def test_a_night_as_it_should_be_is_clean(tmp_path: Path) -> None:
    night = night_of(tmp_path / "n", PretendedRuns())
    assert (night.verdict, night.exit_code, night.why, night.runs, night.missing) == ("clean", 0, (), 4, 0)
    assert [(row.role, row.met) for row in night.cases] == [("silent", True), ("found", True)]
    assert (night.rate.count, night.rate.of) == (0, 12)  # the positive control is no rate of the stack


@pytest.mark.parametrize(
    ("role", "verdict", "code"),
    [
        ("silent", "anomaly", 1),
        ("silent", "vacuous", 3),
        ("silent", "inconclusive", 5),
        ("silent", "died", 4),
        ("found", "clean", 1),
        ("found", "inconclusive", 5),
    ],
)
def test_one_run_that_is_not_as_it_should_be_sets_the_exit_code(
    role: str, verdict: str, code: int, tmp_path: Path
) -> None:
    def answer(job: Job) -> JobResult:
        result = make_result(job)
        odd = job.role == role and job.seed == 1
        return msgspec.structs.replace(result, verdict=verdict, first_requests=None) if odd else result

    night = night_of(tmp_path / "n", PretendedRuns(answer))
    assert night.exit_code == code and any(role in why or "vacuous" in why for why in night.why)


def test_a_run_that_dies_is_counted_and_the_others_go_on(tmp_path: Path) -> None:
    def answer(job: Job) -> JobResult:
        died = job.key == "small.silent.0"
        return make_result(job, verdict="died", why=("killed by SIGKILL",)) if died else make_result(job)

    night = night_of(tmp_path / "n", PretendedRuns(answer))
    assert night.runs == 4 and night.cases[0].died == ("seed 0: killed by SIGKILL",)
    assert night.exit_code == 4


@pytest.mark.parametrize("whole_lines", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("torn", [b"", b'{"key":"small.sil'])
def test_a_night_killed_at_any_line_goes_on_and_counts_nothing_twice(
    whole_lines: int, torn: bytes, tmp_path: Path
) -> None:
    whole = night_of(tmp_path / "whole", PretendedRuns())
    lines = (tmp_path / "whole" / FILE).read_bytes().splitlines(keepends=True)
    killed = tmp_path / "killed"
    killed.mkdir()
    (killed / FILE).write_bytes(b"".join(lines[:whole_lines]) + torn)
    pool = PretendedRuns()
    resumed = night_of(killed, pool)
    assert len(pool.made) == 4 - max(0, whole_lines - 1)
    assert (resumed.digest, resumed.verdict, resumed.runs) == (whole.digest, whole.verdict, whole.runs)
    keys = [line for line in (killed / FILE).read_bytes().splitlines()]
    assert len(keys) == 5 and len(set(keys)) == 5


def test_the_order_in_which_runs_end_changes_nothing(tmp_path: Path) -> None:
    plan = Plan(make_suite(tmp_path, seeds=9, more=SEQUENTIAL), Target(), 0)
    nights = [night_of(tmp_path / f"{n}", PretendedRuns(workers=n), plan=plan) for n in (1, 2, 7)]
    assert len({night.digest for night in nights}) == 1


def test_a_sequential_test_stops_a_case_and_what_ran_ahead_does_not_count(tmp_path: Path) -> None:
    plan = Plan(make_suite(tmp_path, seeds=30, more=SEQUENTIAL), Target(), 0)
    pool = PretendedRuns(workers=5)
    night = night_of(tmp_path / "n", pool, plan=plan)
    silent, found = night.cases
    assert silent.runs < 30 and "stopped after" in silent.told and "is low" in silent.told and found.runs == 30
    assert silent.runs < sum("silent" in key for key in pool.made) < 30
    assert night.exit_code == 0


def test_a_budget_of_requests_takes_seed_after_seed_in_order(tmp_path: Path) -> None:
    suite = make_suite(tmp_path).with_budget(time_s=None, requests=50)
    nights = [night_of(tmp_path / f"{n}", PretendedRuns(workers=n), plan=Plan(suite, Target(), 0)) for n in (1, 4)]
    assert [night.requests for night in nights] == [54, 54] and nights[0].digest == nights[1].digest
    assert nights[0].cases[0].runs == 7 and nights[0].cases[1].runs == 2  # beyond its seeds only what is silent


def two_cases(folder: Path) -> Plan:
    """Return a night of a case that a sequential test may decide, and of another that goes on."""
    more = f'{SEQUENTIAL}\n[[case]]\nscenario = "{folder / "small.toml"}"\nname = "other"\nseeds = 2\n'
    suite = make_suite(folder, more=more).with_budget(time_s=None, requests=240)
    return Plan(suite, Target(), 0)


def test_a_budget_of_requests_ends_though_one_case_is_decided_long_before(tmp_path: Path) -> None:
    nights = []
    for workers in (1, 5):
        pool = PretendedRuns(workers=workers)
        nights.append(night_of(tmp_path / f"{workers}", pool, plan=two_cases(tmp_path)))
        assert len(pool.made) < 60  # of six requests each: what ran ahead is all that is beyond the budget
    assert nights[0].digest == nights[1].digest and 240 <= nights[0].requests < 260
    decided, *_ = nights[0].cases
    assert "stopped after" in decided.told


def test_runs_that_tell_nothing_make_no_rate_look_better(tmp_path: Path) -> None:
    def mostly_vacuous(job: Job) -> JobResult:
        vacuous = job.role == "silent" and job.seed > 0
        return make_result(job, verdict="vacuous", why=("never fired",)) if vacuous else make_result(job)

    plan = Plan(make_suite(tmp_path, seeds=20), Target(), 0)
    silent, _ = night_of(tmp_path / "n", PretendedRuns(mostly_vacuous), plan=plan).cases
    assert silent.verdicts == {"clean": 1, "vacuous": 19} and (silent.rate.of, silent.rate.sessions) == (6, 2)
    sequential = Plan(make_suite(tmp_path, seeds=20, more=SEQUENTIAL), Target(), 0)
    assert night_of(tmp_path / "s", PretendedRuns(mostly_vacuous), plan=sequential).cases[0].runs == 20


def test_a_night_with_a_defect_is_no_history_of_one_without(tmp_path: Path) -> None:
    defect = Plan(make_suite(tmp_path), Target(defect="pd_chunk_read_early"), 0)
    night_of(tmp_path / "1", PretendedRuns(anomalous), plan=defect, utc="20261122T020000Z")
    correct = night_of(tmp_path / "2", PretendedRuns(anomalous), baseline="latest", utc="20261123T020000Z")
    assert [finding.new for finding in correct.findings] == [True] and correct.comparison is None
    again = night_of(tmp_path / "3", PretendedRuns(anomalous), plan=defect, utc="20261124T020000Z")
    assert [finding.nights for finding in again.findings] == [1]


def test_a_budget_of_time_ends_the_night_and_a_case_that_never_ran_is_inconclusive(tmp_path: Path) -> None:
    suite = make_suite(tmp_path).with_budget(time_s=8.0, requests=None)
    night = night_of(tmp_path / "n", PretendedRuns(workers=1), plan=Plan(suite, Target(), 0))
    assert 2 <= night.runs < 20 and night.elapsed_s >= 8
    short = night_of(
        tmp_path / "m", PretendedRuns(workers=1), plan=Plan(suite.with_budget(time_s=1.0, requests=None), Target(), 0)
    )
    assert short.exit_code == 5 and "small found: 0 of 0 runs found it, 2 asked" in " ".join(short.why)


def test_a_defect_is_put_into_what_is_silent_and_the_control_stays_where_it_cannot_show(tmp_path: Path) -> None:
    plan = Plan(make_suite(tmp_path), Target(defect="pd_chunk_read_early"), 0)
    jobs = {job.role: job for job in plan.jobs()}
    assert not jobs["silent"].control and 'defects = ["pd_chunk_read_early"]' in jobs["silent"].toml
    assert 'defects = ["pd_reuse_before_drain"]' in jobs["found"].toml
    drafts = Plan(make_suite(tmp_path), Target(defect="hicache_draft_not_restored"), 0)
    assert next(drafts.jobs()).control


def test_a_server_gets_no_defects_no_points_of_the_stack_and_nothing_to_find(tmp_path: Path) -> None:
    plan = Plan(make_suite(tmp_path), Target(url="http://127.0.0.1:1"), 0)
    jobs = list(plan.jobs())
    assert {job.role for job in jobs} == {"silent"} and jobs[0].url == "http://127.0.0.1:1"
    assert "fault" not in jobs[0].toml and "defects" not in jobs[0].toml


def test_a_target_that_goes_away_leaves_what_was_measured_and_the_rest_inconclusive(tmp_path: Path) -> None:
    plan = Plan(make_suite(tmp_path, seeds=6), Target(url="http://127.0.0.1:1"), 0)

    def answer(job: Job) -> JobResult:
        lost = job.seed >= 3
        return make_result(job, verdict="failed", why=("refused",), target_lost=True) if lost else make_result(job)

    night = night_of(tmp_path / "n", PretendedRuns(answer, workers=1), plan=plan)
    assert (night.exit_code, night.runs, night.missing) == (5, 3, 3) and "went away: refused" in night.why[0]
    again = night_of(tmp_path / "n", PretendedRuns(), plan=plan)
    assert (again.exit_code, again.runs) == (0, 6)
    gone = night_of(tmp_path / "m", PretendedRuns(lambda job: answer(msgspec.structs.replace(job, seed=9))), plan=plan)
    assert (gone.exit_code, gone.runs) == (4, 0)


def test_ctrl_c_keeps_what_was_done_and_says_what_is_missing(tmp_path: Path) -> None:
    def answer(job: Job) -> JobResult:
        if job.seed == 1:
            raise KeyboardInterrupt
        return make_result(job)

    night = night_of(tmp_path / "n", PretendedRuns(answer, workers=1))
    assert (night.exit_code, night.runs, night.missing) == (5, 2, 2)


def test_a_resume_refuses_another_night(tmp_path: Path) -> None:
    plan = Plan(make_suite(tmp_path), Target(), 0)
    night_of(tmp_path / "n", PretendedRuns(), plan=plan)
    for other, told in (
        (night_id(plan.suite, Target(defect="pd_chunk_read_early"), 0, "", UTC), "its defect differs"),
        (night_id(plan.suite, Target(), 5, "", UTC), "its first seed differs"),
        (night_id(make_suite(tmp_path, seeds=3), Target(), 0, "", UTC), "its suite hash differs"),
    ):
        with pytest.raises(UsageError, match=told):
            Journal.resume(tmp_path / "n", other)
    with pytest.raises(UsageError, match="continue it with --resume"):
        Journal.create(tmp_path / "n", night_id(plan.suite, Target(), 0, "", UTC))


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine" / "runs" / "scenario" / "run").mkdir(parents=True)
    for begin in (Journal.create, Journal.resume):
        with pytest.raises(UsageError, match="not empty, and no night"):
            begin(tmp_path / "mine", night_id(make_suite(tmp_path), Target(), 0, "", UTC))
    assert (tmp_path / "mine" / "runs" / "scenario" / "run").is_dir()


def test_a_full_disk_is_told_with_the_command_that_goes_on(tmp_path: Path) -> None:
    journal = Journal(Path("/dev/full"), night_id(make_suite(tmp_path), Target(), 0, "", UTC))
    job = next(Plan(make_suite(tmp_path), Target(), 0).jobs())
    with pytest.raises(RecordError, match="No space left on device.*--resume goes on"):
        journal.add(make_result(job))
    assert not journal.results
    journal.close()


def test_new_causes_are_told_apart_from_those_of_past_nights(tmp_path: Path) -> None:
    first = night_of(tmp_path / "1", PretendedRuns(anomalous), utc="20261124T020000Z")
    second = night_of(tmp_path / "2", PretendedRuns(anomalous))
    assert [finding.new for finding in first.findings] == [True] and first.findings[0].runs == 2
    assert [(finding.new, finding.nights) for finding in second.findings] == [(False, 1)]
    assert {gate.name: gate.met for gate in second.gates}["new findings"] is True
    assert second.exit_code == 1  # known is not clean


def test_the_latest_night_is_the_baseline_and_worse_same_and_better_are_told(tmp_path: Path) -> None:
    suite = make_suite(tmp_path, seeds=60)
    plan = Plan(suite, Target(), 0)
    clean, bad = PretendedRuns(), PretendedRuns(anomalous)
    first = night_of(tmp_path / "1", clean, plan=plan, baseline="latest", utc="20261122T020000Z")
    assert first.answer == "" and first.exit_code == 0  # there is none yet
    second = night_of(tmp_path / "2", clean, plan=plan, baseline="latest", utc="20261123T020000Z")
    assert second.answer == "same" and second.exit_code == 0
    third = night_of(tmp_path / "3", bad, plan=plan, baseline="latest", utc="20261124T020000Z")
    assert third.answer == "worse" and third.comparison is not None and third.comparison.p_value < 1e-6
    fourth = night_of(tmp_path / "4", clean, plan=plan, baseline="latest", utc="20261125T020000Z")
    assert fourth.answer == "better" and fourth.exit_code == 0
    named = night_of(tmp_path / "5", clean, plan=plan, baseline=str(tmp_path / "1"), utc="20261126T020000Z")
    assert named.answer == "same"


def test_a_baseline_of_another_suite_or_version_is_refused_before_anything_runs(tmp_path: Path) -> None:
    night_of(tmp_path / "1", PretendedRuns(), utc="20261124T020000Z")
    file = tmp_path / "1" / "nightly.json"
    before = msgspec.json.decode(file.read_bytes())
    for key, value, told in (
        ("suite", "bank", 'its suite is "bank"'),
        ("suite_hash", "0", "has changed since"),
        ("version", "0.0.1", "made by version 0.0.1"),
        ("format", 9, "written in format 9"),
    ):
        file.write_bytes(msgspec.json.encode(before | {key: value}))
        pool = PretendedRuns()
        with pytest.raises(UsageError, match=told):
            night_of(tmp_path / f"n-{key}", pool, baseline=str(tmp_path / "1"))
        assert not pool.made
    with pytest.raises(UsageError, match="cannot be read"):
        night_of(tmp_path / "n", PretendedRuns(), baseline=str(tmp_path / "nothing"))


def test_the_rate_gate_passes_fails_or_cannot_tell(tmp_path: Path) -> None:
    def night(limit: float, pool: PretendedRuns) -> Night:
        suite = make_suite(tmp_path, seeds=40, more=f"[gates]\nrate_high_max = {limit}\n")
        return night_of(tmp_path / f"{limit}-{id(pool)}", pool, plan=Plan(suite, Target(), 0))

    clean, bad = PretendedRuns(), PretendedRuns(anomalous)
    assert night(0.1, clean).exit_code == 0
    unsure = night(0.01, clean)  # none of 240 requests in 80 sessions: up to 4.5 %
    assert unsure.exit_code == 5 and "gate rate" in unsure.why[0]
    assert {gate.name: gate.met for gate in night(0.05, bad).gates}["rate"] is False


def test_throughput_is_measured_against_the_reference_of_the_same_job(tmp_path: Path) -> None:
    more = "[gates]\nthroughput_ratio_min = 0.9\n"
    target = Target(defect="pd_chunk_read_early", reference="bundled")
    plan = Plan(make_suite(tmp_path, more=more), target, 0)
    assert {job.role: job.control for job in plan.jobs()} == {"silent": False, "found": False, "reference": True}

    def slower(job: Job) -> JobResult:
        return make_result(job, duration_s=20.0 if job.role == "silent" else 10.0)

    gates = {gate.name: gate for gate in night_of(tmp_path / "n", PretendedRuns(slower), plan=plan).gates}
    assert gates["throughput"].met is False and gates["throughput"].value.startswith("0.500")
    gates = {gate.name: gate for gate in night_of(tmp_path / "m", PretendedRuns(), plan=plan).gates}
    assert gates["throughput"].met is True
    alone = Plan(make_suite(tmp_path, more=more), Target(), 0)
    assert night_of(tmp_path / "o", PretendedRuns(), plan=alone).exit_code == 5
