"""A token or a folder gives the same run again, or says what is not the same."""

import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from repro.base.errors import DivergedError, RecordError, UsageError
from repro.record.folder import RunMeta, write_meta
from repro.record.view import open_run
from repro.run.options import RunOptions
from repro.run.outcome import Outcome
from repro.run.run import run_scenario
from repro.scenario import schema as scenarios
from repro.scenario.schema import parse
from repro.schedule.schedule import Schedule
from repro.search.reproduce import Recipe, prove, recipe_of
from tests.builders import unpacked_log
from tests.tiny import TINY, UTC_RUN, run_tiny, tiny_scenario

WALK = Schedule("random", 3)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return run_tiny(tmp_path_factory.mktemp("made"), options=RunOptions(seed=3, schedule=WALK))


@pytest.fixture
def earlier(made: Outcome, tmp_path: Path) -> Path:
    """A copy of the run's folder, to be tampered with; its runs folder is two above."""
    folder = tmp_path / "runs" / "tiny" / made.path.name
    shutil.copytree(made.path, folder)
    return folder


def again(recipe: Recipe, root: Path) -> Outcome:
    return run_scenario(recipe.scenario, recipe.options, root=root, utc=UTC_RUN)


def change(file: Path, before: str, after: str) -> None:
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after, 1))


def rewrite(folder: Path, **changes: object) -> None:
    meta = msgspec.json.decode((folder / "run.json").read_bytes(), type=RunMeta)
    write_meta(folder, msgspec.structs.replace(meta, **changes))


def test_a_folder_and_its_token_give_the_same_run(made: Outcome, earlier: Path, tmp_path: Path) -> None:
    token = str(made.verdict.token)
    assert len(token) <= 64
    for name in (str(earlier), f"{earlier}/run.json", token):
        recipe = recipe_of(name, tmp_path / "runs")
        assert recipe.options == RunOptions(seed=3, schedule=WALK) and recipe.warnings == ()
    assert prove(recipe, again(recipe, tmp_path)).startswith("the same run: fingerprint ")


def test_a_token_of_a_bundled_scenario_needs_no_folder(
    made: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = str(made.verdict.token)
    with pytest.raises(UsageError, match=r"none of this package's .* Give the folder of the run") as caught:
        recipe_of(token, tmp_path)
    assert caught.value.word.exit_code == 2
    monkeypatch.setattr(scenarios, "bundled_names", lambda: ["tiny"])
    monkeypatch.setattr(scenarios, "find", lambda name: tiny_scenario())
    recipe = recipe_of(token, tmp_path)
    assert recipe.earlier is None and recipe.options.seed == 3
    assert prove(recipe, again(recipe, tmp_path)).startswith("the same run")


@pytest.mark.parametrize("name", ["", "x" * 300, "runs/none", "a token", "AgAD0YxseG86qZg0ATdTBf"])
def test_what_names_no_run_is_a_usage_error(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"copy all of its characters|there is no such folder|this is no run"):
        recipe_of(name, tmp_path)


def test_an_edited_event_is_told_with_both_sides(earlier: Path, tmp_path: Path) -> None:
    change(unpacked_log(earlier), '"what":"admitted"', '"what":"admired"')
    recipe = recipe_of(str(earlier), tmp_path)
    assert "was changed after the run" in recipe.warnings[0]
    with pytest.raises(DivergedError) as caught:
        prove(recipe, again(recipe, tmp_path))
    told = str(caught.value)
    assert caught.value.word.exit_code == 4 and "bug of the harness" not in told
    before, now = told.splitlines()[2:4]
    assert "event " in told and "admired" in before and "admitted" in now and before[:10] == "  before: "


def test_missing_events_and_edited_findings_are_told(earlier: Path, tmp_path: Path) -> None:
    lines = unpacked_log(earlier).read_bytes().splitlines(keepends=True)
    unpacked_log(earlier).write_bytes(b"".join(lines[:-3]))
    recipe = recipe_of(str(earlier), tmp_path)
    with pytest.raises(DivergedError, match=r"event \d+ differs\n  before: \(the log ends\)"):
        prove(recipe, again(recipe, tmp_path))
    unpacked_log(earlier).write_bytes(b"".join(lines))
    (earlier / "findings.jsonl").write_text(
        '{"detector":"canary","layer":"canary","claim":"c","signature":"s"}\n', encoding="utf-8"
    )
    recipe = recipe_of(str(earlier), tmp_path)
    with pytest.raises(DivergedError, match="all events are equal; the findings differ"):
        prove(recipe, again(recipe, tmp_path))


def test_a_line_that_is_no_event_is_told_with_its_place(earlier: Path, tmp_path: Path) -> None:
    change(unpacked_log(earlier), '{"e":"request"', '{"e":"requ')
    with pytest.raises(RecordError, match=r"events\.jsonl:\d+: no event"):
        recipe_of(str(earlier), tmp_path)


def test_an_edited_scenario_is_told_before_it_runs(earlier: Path, tmp_path: Path) -> None:
    change(earlier / "scenario.toml", "rows = 4", "rows = 3")
    recipe = recipe_of(str(earlier), tmp_path)
    assert recipe.warnings == (f"{earlier}/scenario.toml was changed after the run",)
    change(earlier / "scenario.toml", "rows = 3", "rowz = 3")
    with pytest.raises(UsageError, match=r"scenario\.toml \[target\]: unknown key rowz"):
        recipe_of(str(earlier), tmp_path)
    (earlier / "scenario.toml").unlink()
    with pytest.raises(UsageError, match=r"scenario\.toml is missing"):
        recipe_of(str(earlier), tmp_path)


def test_another_fingerprint_without_a_reason_is_a_bug_of_the_harness(earlier: Path, tmp_path: Path) -> None:
    recipe = recipe_of(str(earlier), tmp_path)
    other = again(replace(recipe, options=RunOptions(seed=3)), tmp_path)  # as if the picker had been forgotten
    with pytest.raises(DivergedError, match=r"so this is a bug of the harness; keep ") as caught:
        prove(recipe, other)
    assert caught.value.run_dir == str(other.path)


def test_what_is_known_to_be_different_is_said_first(earlier: Path, tmp_path: Path) -> None:
    meta = open_run(earlier).meta
    rewrite(earlier, versions=meta.versions | {"torch": "1.0", "code": "00"})
    warnings = recipe_of(str(earlier), tmp_path).warnings
    assert any("the run was made with torch 1.0; here it is 2." in warning for warning in warnings)
    assert any("the run was made with code 00; here it is" in warning for warning in warnings)


def test_a_trace_that_has_changed_is_the_reason(tmp_path: Path) -> None:
    trace = tmp_path / "t.jsonl"
    session = '{"id": "a", "turns": [{"messages": [{"role": "user", "content": "CONTENT"}]}]}\n'
    trace.write_text(session.replace("CONTENT", "print('one')"))
    text = TINY.replace("[load]\n", f'[load]\ntrace = "{trace}"\n')
    outcome = run_tiny(tmp_path, parse(text, "mine", "mine.toml"))
    trace.write_text(session.replace("CONTENT", "print('another')"))
    recipe = recipe_of(str(outcome.path), tmp_path)
    with pytest.raises(DivergedError, match=r"event 1 differs[\s\S]*its trace files have changed"):
        prove(recipe, again(recipe, tmp_path))


def test_a_run_against_a_server_cannot_be_reproduced(earlier: Path, tmp_path: Path) -> None:
    config = open_run(earlier).meta.config
    rewrite(earlier, config=config | {"url": "http://127.0.0.1:1"})
    with pytest.raises(UsageError, match=r"this run was against http://127\.0\.0\.1:1, and a server of its own time"):
        recipe_of(str(earlier), tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"config": {"seed": "x"}}, "not as a run of this package leaves it"),
        ({"verdict": {"no": "fingerprint"}}, r"not the run.json of a run.*\$\.verdict"),
    ],
)
def test_a_run_json_of_something_else_is_a_usage_error(
    changes: dict[str, object], words: str, earlier: Path, tmp_path: Path
) -> None:
    rewrite(earlier, **changes)
    with pytest.raises(UsageError, match=words):
        recipe_of(str(earlier), tmp_path)


def test_of_a_killed_run_the_events_that_it_wrote_come_again(earlier: Path, tmp_path: Path) -> None:
    lines = unpacked_log(earlier).read_bytes().splitlines(keepends=True)
    unpacked_log(earlier).write_bytes(b"".join(lines[:40]) + lines[40][:20])  # killed within a line
    (earlier / "requests.parquet").unlink()
    rewrite(earlier, state="running", verdict=None)
    recipe = recipe_of(str(earlier), tmp_path)
    assert (
        "was cut off (it was killed); it runs again in full, and the first 40 events are compared" in recipe.warnings[0]
    )
    assert prove(recipe, again(recipe, tmp_path)) == "the same run as far as it had come: its 40 events are equal"
    change(unpacked_log(earlier), '"what":"admitted"', '"what":"admired"')
    with pytest.raises(DivergedError, match=r"event \d+ differs"):
        prove(recipe, again(recipe, tmp_path))


def test_of_a_run_that_a_clock_cut_the_events_before_come_again(tmp_path: Path) -> None:
    now_s = [0.0]

    def progress(snapshot: object) -> None:
        now_s[0] = 99.0

    scenario = tiny_scenario(end="[limits]\nwall_s = 50")
    cut = run_tiny(tmp_path, scenario, clock_s=lambda: now_s[0], progress=progress)
    recipe = recipe_of(str(cut.path), tmp_path)
    assert "was cut off (the limit of 50 s (limits.wall_s) was reached)" in recipe.warnings[0]
    assert prove(recipe, again(recipe, tmp_path)).startswith("the same run as far as it had come: its ")
