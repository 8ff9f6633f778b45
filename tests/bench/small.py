"""The loads of the suite `bank` as what a token may keep of a scenario: the smallest that show each defect."""

from functools import lru_cache

from repro.fleet.nightly.suite import find_suite
from repro.scenario.overrides import LEAVING_FAULTS
from repro.scenario.schema import Scenario
from repro.schedule.overrides import Overrides


@lru_cache(maxsize=1)
def small_loads() -> dict[str, Overrides]:
    """Return for each scenario of the suite how much of its load the suite plays, in stamps."""
    suite = find_suite("bank")
    return {case.scenario: _overrides(played) for case, played in zip(suite.cases, suite.scenarios, strict=True)}


def _overrides(played: Scenario) -> Overrides:
    load, config = played.load, played.config
    abort_us = next((fault.do.time_us for fault in played.faults if fault.at in LEAVING_FAULTS), None)
    return Overrides(
        stamps=True,
        sessions=tuple(range(load.sessions)),
        turns=load.turns,
        prompt_tokens=load.prompt_tokens,
        answer_tokens=load.answer_tokens_max,
        device_pages=config.device_pages,
        context_tokens=config.context_tokens,
        abort_ms=None if abort_us is None else int(abort_us / 1e3),
    )
