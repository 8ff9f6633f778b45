"""Traces on the command line, as a scenario: so a replay has the same folder, report and token as any run."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from repro.base.errors import TraceError, UsageError
from repro.base.strict import to_struct
from repro.fault.defects import with_defects
from repro.scenario.ranges import WEEK_S
from repro.scenario.schema import FORMAT, AcceptanceSpec, Limits, LoadSpec, Scenario, ScenarioFile, checked

TITLE, CONFIG = "Replay of agent traces", "tiny-hicache"
LIMITS = Limits(wall_s=WEEK_S, requests=100_000_000)  # a replay ends with its traces
REPLAY = LoadSpec(sessions=100_000, concurrency=16, answer_tokens_max=128)  # the default of `repro replay`


def replay_scenario(
    load: LoadSpec, traces: Sequence[Path], *, defects: Sequence[str] = (), acceptance: Sequence[str] = ()
) -> Scenario:
    """Return the scenario that replays these traces; `acceptance` are lines "key=value" of its [acceptance].

    Raises TraceError for a path that is not there, ScenarioError for a line that is wrong.
    """
    with_defects(tuple(defects), "--defect")
    for trace in traces:
        if not trace.exists():
            raise TraceError(f"{trace}: there is no such file or folder; give trace files or folders of them")
    load = msgspec.structs.replace(load, trace=tuple(map(str, traces)))
    rules = _rules(acceptance)
    file = ScenarioFile(
        format=FORMAT,
        title=TITLE,
        defects=tuple(defects),
        target={"config": CONFIG},
        load=load,
        limits=LIMITS,
        acceptance=to_struct(rules, AcceptanceSpec, "replay", ("acceptance",)) if rules else None,
    )
    return checked(file, _toml(file, rules), "replay", "replay")


def _toml(file: ScenarioFile, rules: dict[str, float | str]) -> str:
    """Return the text of the scenario's file."""
    load = file.load
    retries = f'on_anomaly = "{load.on_anomaly}"\nanomaly_retries_max = {load.anomaly_retries_max}\n'
    more = (retries if load.on_anomaly != "report" else "") + ("nonces = true\n" if load.nonces else "")
    return f"""format = {file.format}
title = "{file.title}"
defects = {_array(file.defects)}

[target]
config = "{CONFIG}"

[load]
trace = {_array(load.trace)}
sessions = {load.sessions}
concurrency = {load.concurrency}
scale_tokens = {load.scale_tokens}
time_scale = {load.time_scale}
answer_tokens_max = {load.answer_tokens_max}
history = "{load.history}"
shape = {{ kind = "{load.shape.__struct_config__.tag}" }}
{more}
[limits]
wall_s = {file.limits.wall_s}
requests = {file.limits.requests}
{_table(rules)}"""


def _rules(lines: Sequence[str]) -> dict[str, float | str]:
    """Return the values that "key=value" lines give, numbers where they read as numbers."""
    values: dict[str, float | str] = {}
    for line in lines:
        key, equals, value = line.partition("=")
        if not equals:
            raise UsageError(f'--acceptance "{line}": give KEY=VALUE, such as length_min=1.4 or profile=glm.json')
        values[key.strip()] = _number(value.strip())
    return values


def _number(text: str) -> float | str:
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def _table(rules: dict[str, float | str]) -> str:
    rows = [
        f"{_text(key)} = {_text(value) if isinstance(value, str) else repr(value)}\n" for key, value in rules.items()
    ]
    return "\n[acceptance]\n" + "".join(rows) if rows else ""


def _text(text: str) -> str:
    return _array([text])[1:-1]


def _array(texts: Sequence[str]) -> str:
    """Return an array of texts; JSON's form is TOML's as well."""
    try:
        return msgspec.json.encode(list(texts)).decode()
    except UnicodeEncodeError as error:
        raise TraceError(f"{error.object!r}: the name is not UTF-8; rename it") from error
