"""A scenario with less load: what a search plays over and over, and what is left of a shrunk finding."""

import tomllib
from typing import Any

from repro.base.toml import to_toml
from repro.scenario.schema import Scenario, parse
from repro.scenario.sessions import sessions_of
from repro.schedule.overrides import Kept

LEAVING = ("client.abort", "client.disconnect")  # faults whose time a token may keep
SESSIONS, TURNS = 6, 3  # of a light load: enough that requests meet, and seconds a run


def light(scenario: Scenario, *, stamps: bool, seed: int = 0) -> Kept:
    """Return what of a scenario's load is enough to search it: fewer sessions and turns, and as many fewer pages.

    Answers stay as long as they are, for an abort has to come in the middle of one.
    """
    load, config = scenario.load, scenario.config
    there = present(scenario, seed)
    sessions = there[:SESSIONS]
    two_requests_pages = -(-2 * config.context_tokens // config.page_tokens)
    return Kept(
        stamps=stamps,
        sessions=sessions,
        turns=min(TURNS, load.turns or TURNS),
        device_pages=max(two_requests_pages, config.device_pages * len(sessions) // len(there)),
    )


def present(scenario: Scenario, seed: int) -> tuple[int, ...]:
    """Return the numbers of the sessions that are asked, ascending; traces may have fewer than the load allows.

    Raises TraceError or ScenarioError where there are none, or not those.
    """
    there, asked = len(sessions_of(scenario.load, seed)), scenario.load.only_sessions
    return tuple(range(there)) if asked is None else tuple(sorted(set(asked)))


def lightened(scenario: Scenario, kept: Kept) -> Scenario:
    """Return the scenario with only what is kept. Raises ScenarioError where that makes no sense any more."""
    if kept == Kept():
        return scenario
    return parse(kept_toml(scenario, kept), scenario.name, f"{scenario.name}, with less load")


def kept_toml(scenario: Scenario, kept: Kept) -> str:
    """Return the text of a scenario file with only what is kept; of what must be exercised, one is enough."""
    tables: dict[str, Any] = tomllib.loads(scenario.source)
    target, load, limits = (tables.setdefault(name, {}) for name in ("target", "load", "limits"))
    if kept.stamps:
        target["numerics"] = "stamps"
    changes = (
        (target, "device_pages", kept.device_pages),
        (target, "context_tokens", kept.context_tokens),
        (target, "host_pages", kept.host_pages),
        (limits, "requests", kept.requests),
        (load, "requests", kept.dealt),
        (load, "only_sessions", kept.sessions),
        (load, "turns", kept.turns),
        (load, "prompt_tokens", kept.prompt_tokens),
        (load, "answer_tokens_max", kept.answer_tokens),
        (target.get("pd", {}), "decode_pages", kept.decode_pages),
        (load, "gap_s", None if kept.gap_ms is None else (kept.gap_ms / 1e3,) * 2),
    )
    for table, key, value in changes:
        if value is not None:
            table[key] = list(value) if isinstance(value, tuple) else value
    if kept.faults is not None:
        tables["fault"] = [fault for number, fault in enumerate(tables.get("fault", [])) if number in kept.faults]
    for fault in tables.get("fault", []):
        if kept.abort_ms is not None and fault["at"] in LEAVING:
            fault["do"]["us"] = kept.abort_ms * 1_000
        if kept.fires is not None:
            fault["when"] = {"skip": kept.fires, "times": 1}
    tables["exercise"] = {name: min(floor, 1) for name, floor in tables.get("exercise", {}).items()}
    return to_toml({name: value for name, value in tables.items() if value or name == "defects"})
