"""The file of an experiment: what its parts become, and what is refused with place and nearest name."""

from pathlib import Path

import pytest

from repro.base.errors import ScenarioError
from repro.base.toml import to_toml
from repro.fleet.experiment.plan import Experiment, find, limited, parse_experiment
from repro.scenario.schema import bundled_names, parse
from tests.fleet.experiment.builders import experiment_text


def parsed(text: str) -> Experiment:
    return parse_experiment(text, "small", "small.toml")


def refused(text: str) -> str:
    with pytest.raises(ScenarioError) as told:
        parsed(text)
    return str(told.value)


def test_the_bundled_experiment_has_the_five_steps_of_the_report() -> None:
    assert bundled_names("experiments") == ["pd_scaling_pain"]
    experiment = find("pd_scaling_pain")
    assert experiment is not None and experiment.defects == ("pd_reuse_before_drain",)
    assert {step.name: step.expect for step in experiment.steps} == {
        "a": "silent", "b": "silent", "c": "rate", "d": "found", "e": "silent",
    }  # fmt: skip
    steps = {step.name: step for step in experiment.steps}
    assert steps["a"].bad_requests_of == "d"
    assert [name for name, step in steps.items() if step.faults] == ["d", "e"]
    assert [name for name, step in steps.items() if step.control] == ["e"]
    assert [variant.name for variant in steps["c"].variant] == ["lifo", "deferred_sorted"]
    whole = [part for part in experiment.parts if part.step.name in "de"]
    assert whole[0].tables["load"] == whole[1].tables["load"] and whole[0].tables["target"] == whole[1].tables["target"]


def test_a_part_overrides_key_by_key_down_to_inner_tables() -> None:
    experiment = parsed(experiment_text())
    parts = {part.key: part for part in experiment.parts}
    assert list(parts) == ["a", "d", "e", "c-lifo", "c-deferred-sorted", "c-timeout"]
    config = parse(parts["c-timeout"].scenario_text(), "part", "part.toml").config
    assert config.pd is not None and config.pd.transfer_timeout_s == 0.25 and config.pd.prefill == 3
    assert config.free_list == "lifo" and parts["c-timeout"].sensitivity
    assert parse(parts["c-deferred-sorted"].scenario_text(), "part", "part.toml").config.free_list == "deferred_sorted"


def test_bad_requests_are_asked_one_at_a_time(tmp_path: Path) -> None:
    (alone,) = (part for part in parsed(experiment_text()).parts if part.key == "a")
    load = parse(alone.scenario_text(tmp_path / 'bad "1".jsonl', 3), "part", "part.toml").load
    assert (load.concurrency, load.sessions, load.history) == (1, 3, "recorded")
    assert load.trace == str(tmp_path / 'bad "1".jsonl') and load.turns is None


def test_seeds_are_limited_part_by_part() -> None:
    experiment = parsed(experiment_text())
    assert {part.seeds for part in limited(experiment.parts, 1)} == {1}
    assert limited(experiment.parts, None) == experiment.parts


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('expect = "found"', 'expects = "found"', '[[step]] 2: unknown key expects; nearest: "expect"'),
        ('expect = "found"', 'expect = "loud"', 'expect = "loud"; use one of: found, rate, silent'),
        ('expect = "found"\n', "", 'the key "expect" is missing'),
        ('bad_requests_of = "d"', 'bad_requests_of = "f"', 'bad_requests_of = "f" is no step'),
        ('bad_requests_of = "d"', 'bad_requests_of = "c"', "names one without"),
        ('name = "e"', 'name = "d"', 'name = "d"; each step needs a name of its own'),
        ("seeds = 2", "seeds = 0", "seeds = 0; must be at least 1"),
        ("transfer_timeout_s = 0.25", "transfer_timeout = 0.25", '[[step]] c "timeout" [target]: unknown key'),
        ('free_list = "deferred_sorted"', 'free_lists = "fifo"', 'nearest: "free_list"'),
        ("[limits]", "[limit]", "unknown key limit"),
        ('name = "timeout"', 'name = "lifo"', 'two parts would share the folder "c-lifo"'),
    ],
)
def test_what_is_wrong_is_refused_with_its_place(old: str, new: str, told: str) -> None:
    text = experiment_text()
    assert old in text
    assert told in refused(text.replace(old, new))


def test_an_experiment_needs_steps_and_faults_where_a_step_turns_them_on() -> None:
    text = experiment_text()
    assert "there is no [[step]]" in refused(text[: text.index("[[step]]")])
    begin, end = text.index("[[fault]]"), text.index("[limits]")
    assert "the file has no [[fault]]" in refused(text[:begin] + text[end:])
    assert "not valid TOML" in refused("title = ")


def test_a_scenario_is_no_experiment(tmp_path: Path) -> None:
    assert find("hicache_early_read") is None and find(str(tmp_path / "missing.toml")) is None
    path = tmp_path / "small.toml"
    path.write_text(experiment_text())
    found = find(str(path))
    assert found is not None and found.name == "small"


def test_what_is_written_as_toml_is_read_the_same() -> None:
    import tomllib

    tables = {
        "title": 'a "b"\n\\ \x7f é', "on": True, "pair": [1, 2.5], "defects": [],
        "target": {"pd": {"prefill": 2, "odd key": "x"}, "n": -1e-9},
        "fault": [{"at": "x", "do": {"us": 1}}, {"at": "y"}],
        "empty": {},
    }  # fmt: skip
    assert tomllib.loads(to_toml(tables)) == tables
