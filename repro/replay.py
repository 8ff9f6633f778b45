"""Traces on the command line, as a scenario: so a replay has the same folder, report and token."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from repro.base.errors import TraceError
from repro.fault.defects import with_defects
from repro.scenario import WEEK_S, Scenario, parse

REQUESTS_MAX = 100_000_000  # a replay ends with its traces


def replay_scenario(
    traces: Sequence[Path],
    *,
    concurrency: int,
    scale_tokens: float,
    time_scale: float,
    sessions: int,
    answer_tokens: int,
    history: str,
    arrivals: str,
    defects: tuple[str, ...],
) -> Scenario:
    """Return the scenario that replays these traces. Raises TraceError for a path that is not there."""
    with_defects(defects, "--defect")
    for trace in traces:
        if not trace.exists():
            raise TraceError(f"{trace}: there is no such file or folder; give trace files or folders of them")
    text = f"""format = 1
title = "Replay of agent traces"
defects = {_toml(defects)}

[target]
config = "tiny-hicache"

[load]
trace = {_toml([str(trace) for trace in traces])}
sessions = {sessions}
concurrency = {concurrency}
scale_tokens = {scale_tokens}
time_scale = {time_scale}
answer_tokens_max = {answer_tokens}
history = "{history}"
shape = {{ kind = "{arrivals}" }}

[limits]
wall_s = {WEEK_S}
requests = {REQUESTS_MAX}
"""
    return parse(text, "replay", "replay")


def _toml(texts: Sequence[str]) -> str:
    """Return an array of texts; JSON's form is TOML's as well."""
    try:
        return msgspec.json.encode(list(texts)).decode()
    except UnicodeEncodeError as error:
        raise TraceError(f"{error.object!r}: the name is not UTF-8; rename it") from error
