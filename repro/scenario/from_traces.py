"""Traces on the command line, as a scenario: so a replay has the same folder, report and token."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from repro.base.errors import TraceError, UsageError
from repro.fault.defects import with_defects
from repro.load.plan import OnAnomaly
from repro.scenario.schema import WEEK_S, Scenario, parse

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
    on_anomaly: OnAnomaly = "report",
    anomaly_retries: int = 1,
    acceptance: Sequence[str] = (),
    nonces: bool = False,
) -> Scenario:
    """Return the scenario that replays these traces; `acceptance` are lines "key=value" of its [acceptance].

    Raises TraceError for a path that is not there, ScenarioError for a line that is wrong.
    """
    with_defects(defects, "--defect")
    for trace in traces:
        if not trace.exists():
            raise TraceError(f"{trace}: there is no such file or folder; give trace files or folders of them")
    retries = (
        f'on_anomaly = "{on_anomaly}"\nanomaly_retries_max = {anomaly_retries}\n' if on_anomaly != "report" else ""
    )
    planted = "nonces = true\n" if nonces else ""
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
{retries}{planted}
[limits]
wall_s = {WEEK_S}
requests = {REQUESTS_MAX}
{_acceptance(acceptance)}"""
    return parse(text, "replay", "replay")


def _acceptance(lines: Sequence[str]) -> str:
    """Return the table of TOML that "key=value" lines make; what a key does not take, its reader refuses."""
    values: dict[str, str] = {}
    for line in lines:
        key, equals, value = line.partition("=")
        if not equals:
            raise UsageError(f'--acceptance "{line}": give KEY=VALUE, such as length_min=1.4 or profile=glm.json')
        values[key.strip()] = value.strip()
    table = [f"{_text(key)} = {_number(value) or _text(value)}\n" for key, value in values.items()]
    return "\n[acceptance]\n" + "".join(table) if table else ""


def _number(text: str) -> str:
    """Return a number as TOML writes it; "" for what is none."""
    for kind in (int, float):
        with suppress(ValueError):
            return repr(kind(text))
    return ""


def _text(text: str) -> str:
    return _toml([text])[1:-1]


def _toml(texts: Sequence[str]) -> str:
    """Return an array of texts; JSON's form is TOML's as well."""
    try:
        return msgspec.json.encode(list(texts)).decode()
    except UnicodeEncodeError as error:
        raise TraceError(f"{error.object!r}: the name is not UTF-8; rename it") from error
