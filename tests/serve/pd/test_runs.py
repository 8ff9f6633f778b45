"""Disaggregated runs from the scenario file to the verdict."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from repro.base.errors import ScenarioError
from repro.run.options import RunOptions
from repro.run.outcome import Outcome
from repro.run.run import run_scenario
from repro.scenario.schema import parse
from repro.schedule.schedule import Schedule

SCENARIO = """
format = 1
title = "pd_reuse_before_drain, small"
defects = ["pd_reuse_before_drain"]

[target]
config = "tiny-hicache"
numerics = "stamps"
device_pages = 64
host_pages = 64
context_tokens = 2048
rows = 8
speculative_drafts = 2
pd = {{ {pd} }}

[load]
sessions = 6
concurrency = 6
turns = 3
prompt_tokens = 1200
answer_tokens_max = 40
trace = "synth:code-review"
gap_s = [0.5, 4.0]

[[fault]]
at = "transfer.write"
when = {{ probability = 0.02 }}
do = {{ kind = "delay", us = 2000000 }}

[exercise]
transfers = 10
transfer_aborts = 1
"""
PD = "prefill = 2, decode = 1, transfer_timeout_s = 1.5"


def run(tmp_path: Path, pd: str = PD, **options: Any) -> Outcome:
    scenario = parse(SCENARIO.format(pd=pd), "small-pd", "small-pd.toml")
    return run_scenario(scenario, RunOptions(**({"seed": 3} | options)), root=tmp_path, utc=datetime.now(UTC))


def test_the_defect_is_found_and_the_control_is_silent_and_both_are_the_same_every_time(tmp_path: Path) -> None:
    found, again = run(tmp_path), run(tmp_path)
    assert found.verdict.word == "anomaly"
    assert found.fingerprint == again.fingerprint
    assert found.verdict.signatures == again.verdict.signatures
    assert any("transfer.write write x transfer.write write" in name for name in signatures(found))
    control = run(tmp_path, control=True)
    assert (control.verdict.word, control.verdict.findings) == ("clean", {})


@pytest.mark.parametrize("picker", ["random"])
def test_another_schedule_finds_it_too(picker: str, tmp_path: Path) -> None:
    assert run(tmp_path, schedule=Schedule(picker, 7)).verdict.word == "anomaly"
    assert run(tmp_path, schedule=Schedule(picker, 7), control=True).verdict.findings == {}


@pytest.mark.parametrize(
    ("pd", "said"),
    [
        ("prefill = 0", r"\[target\.?pd\]|pd\.prefill = 0"),
        ("prefill = 7, decode = 7", "pd.prefill = 7, pd.decode = 7, pd.lanes = 2: 85 streams"),
        ("prefill = 4, lanes = 64", "take fewer workers or lanes"),
        ("decode_pages = 8", "pd.decode_pages = 8"),
        ("decode_pages = -1", "pd.decode_pages = -1"),
        ("prefil = 2", 'nearest: "prefill"'),
        ("transfer_timeout_s = 0", "pd.transfer_timeout_s = 0"),
        ('prefill = "two"', "a whole number"),
    ],
)
def test_impossible_ratios_are_refused_with_the_key(pd: str, said: str) -> None:
    with pytest.raises(ScenarioError, match=said):
        parse(SCENARIO.format(pd=pd), "small-pd", "small-pd.toml")


def test_decode_needs_room_for_one_context_and_a_quarter() -> None:
    config = parse(SCENARIO.format(pd="decode = 1"), "small-pd", "small-pd.toml").config
    least = -(-config.context_tokens * 5 // (4 * config.page_tokens))
    assert parse(SCENARIO.format(pd=f"decode_pages = {least}"), "small-pd", "small-pd.toml").config.pd is not None
    with pytest.raises(ScenarioError, match="more than 80% of pd.decode_pages"):
        parse(SCENARIO.format(pd=f"decode_pages = {least - 1}"), "small-pd", "small-pd.toml")


def signatures(outcome: Outcome) -> dict[str, int]:
    return outcome.verdict.signatures
