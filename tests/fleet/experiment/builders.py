"""An experiment at a size that a test can afford, at which its steps come to what they expect."""

SMALL = """
format = 1
title = "small"
defects = ["pd_reuse_before_drain"]

[target]
config = "tiny"
numerics = "stamps"
device_pages = 96
context_tokens = 1024
rows = 8
pd = { prefill = 3, decode = 1, transfer_timeout_s = 0.6 }

[load]
history = "recorded"
sessions = 8
concurrency = 5
turns = 3
prompt_tokens = 700
gap_s = [0.1, 0.4]
answer_tokens_max = 40

[[fault]]
at = "transfer.write"
when = { probability = 0.2 }
do = { kind = "delay", us = 60000 }

[limits]
wall_s = 120

[[step]]
name = "a"
title = "alone"
expect = "silent"
bad_requests_of = "d"
seeds = 2
target = { pd = { transfer_timeout_s = 60.0 } }

[[step]]
name = "d"
title = "injector on"
expect = "found"
faults = true
seeds = 2

[[step]]
name = "e"
title = "fix"
expect = "silent"
faults = true
control = true
seeds = 2

[[step]]
name = "c"
title = "load raised"
expect = "rate"

[[step.variant]]
name = "lifo"

[[step.variant]]
name = "deferred_sorted"
target = { free_list = "deferred_sorted" }

[[step.sensitivity]]
name = "timeout"
target = { pd = { transfer_timeout_s = 0.25 } }
"""


def experiment_text() -> str:
    """Return an experiment whose seeds 0 and 1 find the defect in step d."""
    return SMALL
