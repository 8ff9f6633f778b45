"""What stays on the disk: one whole run for each cause, and no more than the bound."""

from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from repro.base.errors import RecordError
from repro.fleet.nightly import evidence as evidence_module
from repro.fleet.nightly.evidence import Evidence
from repro.fleet.nightly.execute import execute
from repro.fleet.nightly.job import JobResult
from repro.fleet.nightly.plan import Plan, Target
from repro.record.log import LOG
from tests.fleet.nightly.builders import make_suite

BYTES_MAX = 100_000


@pytest.fixture(autouse=True)
def without_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence_module, "write_report", lambda run: None)
    monkeypatch.setattr(evidence_module, "open_run", lambda path: path)


def run(root: Path, seed: int, *, verdict: str = "anomaly", signature: str = "a", log_bytes: int = 500) -> JobResult:
    """Return a result whose folder is there."""
    folder = root / "small" / f"run-{seed}"
    folder.mkdir(parents=True)
    (folder / LOG).write_bytes(b"x" * log_bytes)
    (folder / "findings.jsonl").write_bytes(b"y" * 100)
    signatures = {signature: 1} if verdict == "anomaly" else {}
    return JobResult(f"s.silent.{seed}", "s", "silent", seed, verdict, signatures=signatures, run_dir=str(folder))


def kept(root: Path) -> dict[str, bool]:
    """Return the folders that are there, and whether their log is."""
    return {folder.name: (folder / LOG).exists() for folder in sorted(root.glob("*/*"))}


def test_clean_and_vacuous_runs_go_and_a_cause_keeps_one_log(tmp_path: Path) -> None:
    evidence = Evidence(tmp_path, BYTES_MAX)
    for result in (
        run(tmp_path, 0, verdict="clean"),
        run(tmp_path, 1, verdict="vacuous"),
        run(tmp_path, 2),
        run(tmp_path, 3),
        run(tmp_path, 4, signature="b"),
        run(tmp_path, 5, verdict="inconclusive"),
    ):
        evidence.keep(result)
    assert kept(tmp_path) == {"run-2": True, "run-3": False, "run-4": True, "run-5": False}
    assert (evidence.pruned.runs, evidence.pruned.logs, evidence.pruned.bytes) == (2, 2, 2 * 600 + 2 * 500)
    assert {cause: Path(path).name for cause, path in evidence.examples.items()} == {"a": "run-2", "b": "run-4"}


def test_the_bound_holds_for_logs_and_then_for_folders(tmp_path: Path) -> None:
    evidence = Evidence(tmp_path, 250)
    for seed in range(4):
        evidence.keep(run(tmp_path, seed, signature=str(seed)))
    assert kept(tmp_path) == {"run-0": False, "run-1": False}
    assert sum(file.stat().st_size for file in tmp_path.rglob("*.jsonl")) <= 250


def test_a_resume_drops_what_nobody_counts_and_keeps_what_is_counted(tmp_path: Path) -> None:
    counted = run(tmp_path, 0)
    run(tmp_path, 1)  # under way when the night was killed
    Evidence(tmp_path, BYTES_MAX).tidy({counted.key: counted})
    assert kept(tmp_path) == {"run-0": True}


def test_a_resume_from_elsewhere_drops_nothing_that_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = tmp_path / "night" / "runs"
    counted = run(runs, 0)
    monkeypatch.chdir(tmp_path)
    relative = msgspec.structs.replace(counted, run_dir=str(Path(counted.run_dir).relative_to(tmp_path)))
    monkeypatch.chdir("/")
    Evidence(runs, BYTES_MAX).tidy({counted.key: relative})
    assert kept(runs) == {"run-0": True}


def test_a_disk_that_refuses_a_run_is_no_result_of_it(tmp_path: Path) -> None:
    job = next(Plan(make_suite(tmp_path), Target(), 0).jobs())
    (tmp_path / "file").touch()
    with pytest.raises(RecordError, match="no folder can be made there"):
        execute(replace(job, root=str(tmp_path / "file" / "runs")))
