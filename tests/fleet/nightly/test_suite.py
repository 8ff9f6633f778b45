"""Suites are read strictly: what is wrong is told with file, table, key and what to write instead."""

from pathlib import Path

import pytest

from repro.base.errors import ScenarioError, UsageError
from repro.fleet.nightly.suite import find_suite, parse_suite
from repro.scenario.schema import bundled_names, find
from tests.fleet.nightly.builders import make_suite

CASE = '[[case]]\nscenario = "pd_reuse_before_drain"\n'


def parsed(text: str) -> object:
    return parse_suite(f'format = 1\ntitle = "t"\n{text}', "mine", "mine.toml")


def test_every_bundled_suite_parses_and_every_scenario_is_in_the_bank_and_in_clean() -> None:
    assert bundled_names("suites") == ["bank", "clean", "nightly", "smoke"]
    suites = {name: find_suite(name) for name in bundled_names("suites")}
    bundled = {name for name in bundled_names() if find(name).engine == "bundled"}  # sglang is an extra
    with_defects = {name for name in bundled if find(name).defects}
    assert {case.scenario for case in suites["bank"].cases} == with_defects
    assert {case.scenario for case in suites["clean"].cases} == bundled
    assert all(case.check == ("found", "silent") for case in suites["bank"].cases)
    assert all(case.check == ("silent",) for case in suites["clean"].cases)


def test_overrides_go_on_top_of_the_scenario_key_by_key() -> None:
    suite = parse_suite(
        'format = 1\ntitle = "t"\n[base.load]\nsessions = 3\n[base.target]\nnumerics = "stamps"\n'
        "[base.detect]\npages_sampled = 16\n"
        f"{CASE}target = {{ pd = {{ prefill = 3 }} }}\nload = {{ sessions = 5 }}\nexercise = {{ transfers = 1 }}\n",
        "mine",
        "mine.toml",
    )
    (scenario,) = suite.scenarios
    assert scenario.config.numerics == "stamps" and scenario.load.sessions == 5 and scenario.load.turns == 9
    assert scenario.detect.pages_sampled == 16
    assert scenario.config.pd is not None
    assert (scenario.config.pd.prefill, scenario.config.pd.transfer_timeout_s) == (3, 3.0)
    assert scenario.exercise == {"transfers": 1}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", r"mine.toml: there is no \[\[case\]\]"),
        ("[[case]]\nseeds = 2\n", r"\[\[case\]\] 1: give either scenario or traces"),
        ('[[case]]\nscenario = "hicache_early_red"\n', 'none of the bundled; nearest: "hicache_early_read"'),
        (f"{CASE}sedes = 2\n", 'unknown key sedes; nearest: "seeds"'),
        (f"{CASE}seeds = 0\n", "seeds = 0; must be at least 1"),
        (f'{CASE}check = ["quiet"]\n', "use one of: found, silent"),
        (f"{CASE}check = []\n", "check is empty"),
        (CASE + CASE, 'two cases are called "pd_reuse_before_drain"'),
        (f"{CASE}load = {{ sesions = 2 }}\n", 'unknown key sesions; nearest: "sessions"'),
        (f"{CASE}sequential = {{ rate_low = 0.2, rate_high = 0.1 }}\n", "the low one below the high one"),
        (f"{CASE}[gates]\nrate_high_max = 2.0\n", "rate_high_max = 2.0; must be at least 0 and at most 1"),
        (f"{CASE}[budget]\ntime_s = 0.0\n", "time_s = 0.0; must be at least 1"),
        ("[[case", "not valid TOML"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(text: str, told: str) -> None:
    with pytest.raises(ScenarioError, match=told):
        parsed(text)


def test_a_suite_that_is_not_there_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match='nearest: "smoke"'):
        find_suite("smok")
    with pytest.raises(UsageError, match="cannot be read"):
        find_suite(str(tmp_path / "none.toml"))


def test_a_case_of_traces_is_a_replay(tmp_path: Path) -> None:
    trace = tmp_path / "a.json"
    trace.write_text('[{"role": "user", "content": "hello"}]')
    suite = parse_suite(f'format = 1\ntitle = "t"\n[[case]]\ntraces = ["{trace}"]\n', "mine", "mine.toml")
    assert suite.cases[0].label == "a" and suite.scenarios[0].load.trace == (str(trace),)
    with pytest.raises(ScenarioError, match="has no defect: there is nothing to find"):
        parsed(f'[[case]]\ntraces = ["{trace}"]\ncheck = ["found"]\n')


def test_the_command_line_sets_budgets_instead(tmp_path: Path) -> None:
    suite = make_suite(tmp_path, more="[budget]\nrequests = 7\n")
    assert suite.with_budget(time_s=None, requests=None).budget.requests == 7
    changed = suite.with_budget(time_s=60.0, requests=9).budget
    assert (changed.time_s, changed.requests) == (60.0, 9)


def test_the_suite_that_the_readme_shows_is_one() -> None:
    text = (Path(__file__).parents[3] / "scenarios" / "README.md").read_text()
    shown = text.split("## Suites", 1)[1].split("```toml\n", 1)[1].split("```", 1)[0]
    suite = parse_suite(shown, "shown", "scenarios/README.md")
    assert suite.cases[0].label == "reuse" and suite.gates.throughput_ratio_min == 0.9
