"""A scenario with less load: what a search plays over and over, and what a shrunk finding needs."""

import tomllib
from typing import Any

import msgspec

from repro.base.toml import to_toml
from repro.scenario.schema import Scenario, parse
from repro.scenario.sessions import sessions_of
from repro.schedule.overrides import Overrides

LEAVING_FAULTS = ("client.abort", "client.disconnect")  # an override may change the time of these faults
SESSIONS, TURNS = 6, 3  # a light load: requests meet, and a run takes a second
ANSWER_TOKENS = 8  # at most; nine tenths of a session's steps decode, one like the other


def light_loads(scenario: Scenario, *, stamps: bool, seed: int = 0) -> tuple[Overrides, ...]:
    """Return the loads that a search may play: the light one, with short answers first where it has long ones.

    Long answers take ten times as long, and some races need them: an abort may have to come late in one.
    """
    light = light_load(scenario, stamps=stamps, seed=seed)
    short = min(ANSWER_TOKENS, scenario.load.answer_tokens_max // 3)
    return (msgspec.structs.replace(light, answer_tokens=short), light) if short else (light,)


def light_load(scenario: Scenario, *, stamps: bool, seed: int = 0) -> Overrides:
    """Return a load that is enough for a search: fewer sessions and turns, and pages in proportion."""
    load, config = scenario.load, scenario.config
    asked = asked_sessions(scenario, seed)
    sessions = asked[:SESSIONS]
    two_requests_pages = -(-2 * config.context_tokens // config.page_tokens)
    return Overrides(
        stamps=stamps,
        sessions=sessions,
        turns=min(TURNS, load.turns or TURNS),
        device_pages=max(two_requests_pages, config.device_pages * len(sessions) // len(asked)),
    )


def asked_sessions(scenario: Scenario, seed: int) -> tuple[int, ...]:
    """Return the numbers of the sessions that are asked, ascending; traces may have fewer than the load allows.

    Raises TraceError or ScenarioError where there are none, or not those.
    """
    found, only = len(sessions_of(scenario.load, seed)), scenario.load.only_sessions
    return tuple(range(found)) if only is None else tuple(sorted(set(only)))


def overridden(scenario: Scenario, overrides: Overrides) -> Scenario:
    """Return the scenario with less load. Raises ScenarioError where the overrides do not fit it."""
    if overrides == Overrides():
        return scenario
    return parse(overridden_toml(scenario, overrides), scenario.name, f"{scenario.name}, with less load")


def overridden_toml(scenario: Scenario, overrides: Overrides) -> str:
    """Return the text of a scenario file with less load; each floor of [exercise] becomes one."""
    tables: dict[str, Any] = tomllib.loads(scenario.source)
    target, load, limits = (tables.setdefault(name, {}) for name in ("target", "load", "limits"))
    if overrides.stamps:
        target["numerics"] = "stamps"
    changes = (
        (target, "device_pages", overrides.device_pages),
        (target, "context_tokens", overrides.context_tokens),
        (target, "host_pages", overrides.host_pages),
        (limits, "requests", overrides.requests),
        (load, "requests", overrides.turns_in_all),
        (load, "only_sessions", overrides.sessions),
        (load, "turns", overrides.turns),
        (load, "prompt_tokens", overrides.prompt_tokens),
        (load, "answer_tokens_max", overrides.answer_tokens),
        (target.get("pd", {}), "decode_pages", overrides.decode_pages),
        (load, "gap_s", None if overrides.gap_ms is None else (overrides.gap_ms / 1e3,) * 2),
    )
    for table, key, value in changes:
        if value is not None:
            table[key] = list(value) if isinstance(value, tuple) else value
    if overrides.faults is not None:
        tables["fault"] = [fault for number, fault in enumerate(tables.get("fault", [])) if number in overrides.faults]
    for fault in tables.get("fault", []):
        if overrides.abort_ms is not None and fault["at"] in LEAVING_FAULTS:
            fault["do"]["us"] = overrides.abort_ms * 1_000
        if overrides.fires_after is not None:
            fault["when"] = {"skip": overrides.fires_after, "times": 1}
    tables["exercise"] = {name: min(floor, 1) for name, floor in tables.get("exercise", {}).items()}
    return to_toml({name: value for name, value in tables.items() if value or name == "defects"})
