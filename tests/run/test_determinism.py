"""One seed, one run, bit for bit: in this process, in another one, with any hash seed."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from repro.schedule.schedule import Schedule
from tests.small import run_small, small_scenario


@pytest.mark.parametrize("picker", ["timed", "random"])
def test_the_same_seed_gives_the_same_fingerprint_and_another_seed_another(picker: str, tmp_path: Path) -> None:
    first, second = (run_small(tmp_path, small_scenario(), schedule=Schedule(picker, 7)) for _ in range(2))
    other = run_small(tmp_path, small_scenario(), schedule=Schedule(picker, 7), seed=8)
    assert first.fingerprint == second.fingerprint != other.fingerprint
    assert first.verdict.findings == second.verdict.findings


def test_another_process_with_another_hash_seed_gives_the_same_fingerprint(tmp_path: Path) -> None:
    here = run_small(tmp_path, small_scenario("tensors"))
    command = [sys.executable, "-m", "repro", "reproduce", str(here.path), "--json"]
    command += ["--runs", str(tmp_path), "--threads", "1"]
    environment = os.environ | {"PYTHONHASHSEED": "12345"}
    finished = subprocess.run(command, capture_output=True, env=environment, timeout=300, check=False)
    assert finished.returncode == 1, finished.stderr.decode()
    there = msgspec.json.decode(finished.stdout)
    assert there["fingerprint"] == here.fingerprint
    assert there["findings"] == here.verdict.findings
