"""The race of hicache_early_read at a size that a test can afford."""

from datetime import UTC, datetime
from pathlib import Path

import torch
from msgspec.structs import replace

from repro.run.options import RunOptions
from repro.run.outcome import Outcome
from repro.run.run import run_scenario
from repro.scenario.schema import Scenario, parse

SMALL = """
format = 1
title = "hicache_early_read, small"
defects = ["hicache_early_read"]

[target]
config = "tiny-hicache"
numerics = "{numerics}"
index_store_waits = {index_store_waits}
device_pages = 28
host_pages = 200
context_tokens = 1024
rows = 8
free_list = "fifo"

[load]
sessions = 5
concurrency = 5
turns = 3
prompt_tokens = 500
answer_tokens_max = 24
history = "generated"
trace = "synth:code-review"
gap_s = [1.0, 6.0]

[[fault]]
at = "loadback.copy_layer"
when = {{ probability = 0.5 }}
do = {{ kind = "delay", us = 5000 }}

[exercise]
load_backs = 1
evictions = 1
reads_overlapping_load = 1
"""


def small_scenario(
    numerics: str = "stamps",
    index_store_waits: bool = False,
    drafts: int = 0,
    upload_stream: bool = False,
    pages_sampled: int = 1,
) -> Scenario:
    """Return a scenario of ten requests: two seconds with tensors, a fraction of that with stamps."""
    text = SMALL.format(numerics=numerics, index_store_waits=str(index_store_waits).lower())
    if drafts:
        text = text.replace("[load]", f"speculative_drafts = {drafts}\n\n[load]")
    if upload_stream:
        text = text.replace("[load]", "upload_stream = true\n\n[load]")
    if pages_sampled > 1:
        text += f"\n[detect]\npages_sampled = {pages_sampled}\n"
    return parse(text, "small", "small.toml")


def larger(scenario: Scenario) -> Scenario:
    """Return a small scenario with 15 requests of 1,200 tokens, whose race falls on several pages."""
    load = replace(scenario.load, prompt_tokens=1200, answer_tokens_max=60)
    config = replace(scenario.config, device_pages=64, host_pages=400, context_tokens=2048)
    return replace(scenario, load=load, config=config)


def run_small(tmp_path: Path, scenario: Scenario, **options: object) -> Outcome:
    """Run it on one thread, the oracle asked about suspects and two others."""
    torch.set_num_threads(1)
    chosen = RunOptions(**({"seed": 7, "oracle_sample": 2} | options))  # type: ignore[arg-type]
    return run_scenario(scenario, chosen, root=tmp_path, utc=datetime(2026, 11, 24, tzinfo=UTC))
