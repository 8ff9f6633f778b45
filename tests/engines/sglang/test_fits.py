"""What SGLang's classes cannot play is refused in a sentence, and so is another SGLang."""

import importlib.metadata
import json

import pytest
from typer.testing import CliRunner

from repro.base.errors import ScenarioError, UsageError
from repro.cli import app
from repro.engines.sglang import pinned
from repro.scenario.schema import find, parse
from tests.engines.sglang.builders import SMALL

TEXT = SMALL.format(fault="", fused_store="false")


def refused(text: str) -> str:
    with pytest.raises(ScenarioError) as caught:
        parse(text, "s", "s.toml")
    assert caught.value.word.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize(
    "old, new, told",
    [
        ('engine = "sglang"', 'engine = "sglan"', 'nearest: "sglang"'),
        ('engine = "sglang"', "engine = 3", "engine = 3"),
        ('"hicache_early_read"', '"sched_double_free"', '"sched_double_free" is of the bundled stack'),
        ("rows = 8", "rows = 8\nspeculative_drafts = 3", "speculative_drafts means nothing"),
        ("rows = 8", "rows = 8\npd = { prefill = 2 }", "pd means nothing"),
        ("rows = 8", "rows = 8\nchunk_tokens = 64", "chunk_tokens means nothing"),
        ('numerics = "stamps"', "", 'numerics = "tensors"; engine = "sglang" takes "stamps"'),
        ("rows = 8", "rows = 8\npage_tokens = 128", "page_tokens = 128"),
        ("rows = 8", 'rows = 8\nwrite_policy = "write_back"', '"write_through" or "write_through_selective"'),
        (
            "[exercise]",
            '[[fault]]\nat = "memory.evict"\ndo = { kind = "evict", tokens = 64 }\n\n[exercise]',
            'at = "memory.evict" is of the bundled stack',
        ),
        ("host_pages = 192", "host_pages = 64", "more host memory than device memory"),
    ],
)
def test_what_would_have_no_effect_is_refused(old: str, new: str, told: str) -> None:
    assert old in TEXT
    assert told in refused(TEXT.replace(old, new))


def test_the_bundled_scenario_is_of_sglangs_engine_and_others_are_not() -> None:
    assert find("sglang_component").engine == "sglang"
    assert find("hicache_early_read").engine == "bundled"


def _another(name: str) -> str:
    return "0.5.12"


def _none(name: str) -> str:
    raise importlib.metadata.PackageNotFoundError(name)


@pytest.mark.parametrize("found, told", [(_another, "0.5.12 is installed"), (_none, "is not installed")])
def test_another_sglang_or_none_is_a_usage_error(
    found: object, told: str, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setattr(pinned, "version", found)
    monkeypatch.setattr(pinned, "load", pinned.load.__wrapped__)
    with pytest.raises(UsageError, match="pip install --no-deps sglang==0.5.11"):
        pinned.require()
    runs = tmp_path_factory.mktemp("runs")
    result = CliRunner().invoke(app, ["run", "sglang_component", "--json", "--runs", str(runs)])
    assert result.exit_code == 2
    said = json.loads(result.stdout)
    assert said["verdict"] == "usage_error" and told in said["error"]
    assert not list(runs.iterdir())  # nothing was begun
