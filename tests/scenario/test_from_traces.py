"""A replay's scenario: the struct that runs is what its file says."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from repro.base.errors import ScenarioError, TraceError, UsageError
from repro.load.shapes import Recorded
from repro.scenario.from_traces import REPLAY, replay_scenario
from repro.scenario.schema import parse

PLAIN = """format = 1
title = "Replay of agent traces"
defects = []

[target]
config = "tiny-hicache"

[load]
trace = ["a.jsonl"]
sessions = 100000
concurrency = 16
scale_tokens = 1.0
time_scale = 1.0
answer_tokens_max = 128
history = "recorded"
shape = { kind = "closed" }

[limits]
wall_s = 604800.0
requests = 100000000
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl", 'b "quoted".jsonl'):
        Path(name).write_text("")


def test_the_file_of_a_plain_replay() -> None:
    assert replay_scenario(REPLAY, [Path("a.jsonl")]).source == PLAIN


@pytest.mark.parametrize(
    ("load", "more"),
    [
        ({}, {}),
        ({"sessions": 3, "time_scale": 0.0, "history": "generated", "shape": Recorded()}, {}),
        ({"on_anomaly": "abort-retry", "anomaly_retries_max": 4, "nonces": True}, {}),
        ({}, {"defects": ("hicache_early_read",), "acceptance": ("length_min=1.4", "tokens_min=128", 'profile=a"b')}),
    ],
)
def test_the_scenario_is_the_one_that_its_file_says(load: dict[str, Any], more: dict[str, Any]) -> None:
    traces = [Path("a.jsonl"), Path('b "quoted".jsonl')]
    scenario = replay_scenario(msgspec.structs.replace(REPLAY, **load), traces, **more)
    assert parse(scenario.source, "replay", "replay") == scenario


def test_what_makes_no_sense_is_refused() -> None:
    trace = [Path("a.jsonl")]
    with pytest.raises(TraceError, match="there is no such file"):
        replay_scenario(REPLAY, [Path("no.jsonl")])
    with pytest.raises(ScenarioError, match=r"\[load\]: concurrency = 0; must be at least 1"):
        replay_scenario(msgspec.structs.replace(REPLAY, concurrency=0), trace)
    with pytest.raises(UsageError, match="give KEY=VALUE"):
        replay_scenario(REPLAY, trace, acceptance=["1.4"])
